"""Display of a plan: tables in a terminal, plain lines elsewhere."""

from collections.abc import Iterator, Mapping
from itertools import groupby

from rich.console import Console
from rich.table import Table

from ofq.monitor.cost import REFERENCE, Cost, cost_text, reference_of
from ofq.monitor.kind import Kind
from ofq.monitor.plan.plan import CORES, GPUS, Plan, Row
from ofq.monitor.span import Range, duration, figures

_NAMES = ("stage", "bits", "done", "to do", "each takes", "hours", "known from")


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    if console.is_terminal:
        _tables(plan, console)
    else:
        for line in lines(plan):
            print(line)
    for text in summary(plan):
        console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def lines(plan: Plan) -> Iterator[str]:
    """Yield one line per row, with the model in front."""
    table = [("model", *_NAMES), *((row.model, *_words(row)) for row in plan.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for words in table:
        yield "  ".join(f"{word:{n}}" for word, n in zip(words, widths, strict=True)).rstrip()


def summary(plan: Plan) -> Iterator[str]:
    """Yield the totals as lines."""
    runs = plan.done + plan.to_do
    yield f"{plan.study}: {runs} runs, {plan.done} done, {plan.to_do} to do"
    if unshared := plan.unshared - runs:
        yield (
            f"shared stages save {unshared} of {plan.unshared} runs{_hours(plan.saved, ', ')}, "
            "compared with cells that each train their own"
        )
    yield from _costs(plan.costs)
    if not plan.to_do:
        return
    yield f"left to compute:{_hours(plan.left, ' ')}"
    amount = [f"{plan.machine.gpus} GPUs"] if plan.left[GPUS].high else []
    amount += [f"{plan.machine.cores} cores"] if plan.left[CORES].high else []
    yield (
        f"wall-clock: {duration(plan.wall)} with {' and '.join(amount)}; "
        f"with any number, {duration(plan.chain)} (the longest chain of runs)"
    )
    if plan.devices:
        yield f"measured on: {', '.join(plan.devices)}"
    if plan.assumption:
        yield f"assumed, not measured: {plan.assumption} (docs/planning.md)"
    if plan.measurable:
        yield f"ofq plan {plan.study} --measure measures the rest, in seconds each"


def _costs(costs: Mapping[Kind, Cost]) -> Iterator[str]:
    """Yield a line for each model and bits: the step time of each method over LSQ's."""
    together: dict[Kind, dict[str, Cost]] = {}
    for kind, cost in costs.items():
        if kind.method != REFERENCE:
            together.setdefault(reference_of(kind), {})[kind.method] = cost
    for reference, methods in together.items():
        ratios = ", ".join(
            f"{name} {cost_text(cost.ratio, cost.low, cost.high)}" for name, cost in methods.items()
        )
        yield (
            f"time of a step of QAT over LSQ's, {reference.model} at {reference.bits}: {ratios} "
            f"({_basis(list(methods.values()))})"
        )


def _basis(costs: list[Cost]) -> str:
    """Say what costs rest on."""
    counts = [cost.count for cost in costs if cost.source == "run"]
    if not counts:
        return "calibration"
    number = figures(Range(min(counts), max(counts)))
    noun = "run" if max(counts) == 1 else "runs"
    others = "; others by calibration" if len(counts) < len(costs) else ""
    return f"median of {number} {noun} and quartiles, recorded while they trained{others}"


def _tables(plan: Plan, console: Console) -> None:
    """Print a table for each model, since a column of models' names would be too wide."""
    for model, rows in groupby(plan.rows, lambda row: row.model):
        table = Table(*_NAMES, box=None, padding=(0, 2, 0, 0), title=model, title_justify="left")
        table.title_style = "bold"
        for column in table.columns[2:6]:
            column.justify = "right"
        for row in rows:
            table.add_row(*_words(row))
        console.print(table)
        console.print()


def _words(row: Row) -> tuple[str, ...]:
    return (
        row.stage,
        row.bits,
        str(row.done),
        str(row.to_do),
        duration(row.each) if row.each else "-",
        figures(row.device_hours) if row.to_do else "-",
        ", ".join(row.sources) or "-",
    )


def _hours(hours: Mapping[str, Range], before: str) -> str:
    """Format hours, such as ``3-4 GPU-hours``; return an empty text if there are none."""
    names = {GPUS: "GPU-hours", CORES: "core-hours"}
    parts = [f"{figures(hours[pool])} {name}" for pool, name in names.items() if hours[pool].high]
    return before + " and ".join(parts) if parts else ""
