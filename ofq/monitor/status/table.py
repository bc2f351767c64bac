"""Status of a study in a terminal, fitted to its size."""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ofq.monitor import span
from ofq.monitor.status.figures import duration, progress, significant, tally
from ofq.monitor.status.fit import fitting, height, shares
from ofq.monitor.status.remaining import time_left, waiting_for
from ofq.monitor.status.runs import STATES, Row, RunStatus, StudyStatus
from ofq.runs.own_code import told
from ofq.stopping import StopRequest

STYLES = {
    "done": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "failed": "bold red",
    "waiting": "dim",
}
"""Text style of each state."""

_PAUSE = 2.0  # seconds between two polls
_NAP = 0.1  # seconds after which Ctrl-C is noticed
_WIDE = 100  # columns from which running runs have a bar
_BAR = 18
_STATE = 14  # columns that the states of a row's runs have at least
_FRAME = 4  # lines of a study beside its rows, failures and hints
_LINES_PER_FAILURE = 12  # of the screen: so a third of it is failures, at most


class Page:
    """Status page of some studies.

    Args:
        watches: The studies.
        console: The console that shows it.

    Attributes:
        finished: Whether all runs were done at the last poll.
    """

    def __init__(self, watches: Sequence[StudyStatus], console: Console) -> None:
        self.watches = watches
        self.console = console
        self.finished = False

    def draw(self, *, fit: bool) -> RenderableType:
        """Read the runs' states and draw them; with ``fit``, no more than the screen holds."""
        statuses = [watch.read() for watch in self.watches]
        self.finished = all(k.state == "done" for found in statuses for k in found.values())
        pairs = zip(self.watches, statuses, strict=True)
        most = max(1, self.console.height // _LINES_PER_FAILURE) if fit else None
        studies = [_Study(*pair, self.console.width, most) for pair in pairs]
        lines = shares([study.height for study in studies], self.console.height)
        return Group(*(study.draw(n) for study, n in zip(studies, lines, strict=True)))


def follow(page: Page, stop: StopRequest) -> None:
    """Show a page until all runs are done or the user stops it, and leave its last state.

    Args:
        page: The page.
        stop: Polled, since an interrupt could hit in the middle of drawing.
    """
    with Live(console=page.console, screen=True, auto_refresh=False) as live:
        while True:
            content = page.draw(fit=True)
            live.update(content, refresh=True)
            if page.finished or _pause(stop):
                break
    page.console.print(content)


def _pause(stop: StopRequest) -> bool:
    """Wait for the next poll; return whether a stop was requested."""
    end = time.monotonic() + _PAUSE
    while stop.cause is None and time.monotonic() < end:
        time.sleep(_NAP)
    return stop.cause is not None


class _Study:
    """Display of one study: all of it, unless failures are limited."""

    def __init__(
        self,
        watch: StudyStatus,
        statuses: Mapping[str, RunStatus],
        width: int,
        most_failures: int | None,
    ) -> None:
        self.watch = watch
        self.statuses = statuses
        self.width = width
        self.most_failures = most_failures
        self.counts = tally(statuses.values())
        self.below = [*self._failures(), *self._hints()]
        self.height = _FRAME + height(watch.rows) + len(self.below)

    def draw(self, lines: int) -> RenderableType:
        rows = self.watch.rows
        if self.most_failures is not None:
            rows = fitting(rows, self.statuses, max(2, lines - _FRAME - len(self.below)))
        return Group(*self._head(), *self._rows(rows), *self.below, Text())

    def _head(self) -> list[RenderableType]:
        counts = [Text(f"{self.counts[s]} {s}", STYLES[s]) for s in STATES if self.counts[s]]
        name = Text.assemble((self.watch.grid.study, "bold"), f"  {len(self.statuses)} runs: ")
        done = self.counts["done"] + sum(
            k.step / k.total for k in self.statuses.values() if k.total
        )
        remaining = time_left(self.watch.runs, self.statuses)
        left = f"{span.duration(remaining)} left" if remaining else ""
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column()
        share = f"{100 * done / len(self.statuses):.0f} %"
        bar.add_row(ProgressBar(len(self.statuses), done), f"{share}  {left}".strip())
        return [_line(name + Text(", ").join(counts)), bar]

    def _rows(self, rows: Sequence[Row]) -> Iterator[RenderableType]:
        """Yield the table, with a line for each model, and one that counts rows left out."""
        columns = _Columns(self.watch.rows, self.statuses, self.width)
        yield columns.heading()
        for model, group in groupby(rows, lambda row: row.cell.model):
            yield _line(Text(model, "bold"))
            yield columns.table(group)
        shown = {id(row) for row in rows}
        rest = [row for row in self.watch.rows if id(row) not in shown]
        if rest:
            done = sum(
                all(self.statuses[run.id].state == "done" for run in row.runs) for row in rest
            )
            text = f"… and {len(rest)} more cells, {done} of them done; ofq status --once has all"
            yield _line(Text(text, "dim"))

    def _failures(self) -> list[RenderableType]:
        """Return each failed run with its error, its log and the remedy."""
        failed = {name: status.failure for name, status in self.statuses.items() if status.failure}
        waiting = waiting_for(self.watch.runs, self.statuses)
        shown = list(failed)[: self.most_failures]
        lines = []
        for name in shown:
            failure, log = failed[name], self.watch.log(name)
            behind = f"  {len(waiting[name])} runs wait for it" if waiting[name] else ""
            lines += [Text.assemble(("failed ", STYLES["failed"]), name, (behind, "dim"))]
            lines += [Text(f"  {failure.error}", "red")]
            lines += [Text(f"  log: {log}")] if log.exists() else []
            lines += [Text(f"  {failure.todo}")]
        if len(shown) < len(failed):
            rest = f"… and {len(failed) - len(shown)} more failed; ofq status --once has all"
            lines.append(Text(rest, "dim"))
        return [line if self.most_failures is None else _line(line) for line in lines]

    def _hints(self) -> list[RenderableType]:
        study = self.watch.grid.study
        lines: list[RenderableType] = []
        if changed := {n: [*k.changed] for n, k in self.statuses.items() if k.changed}:
            text = Text(told(study, changed), STYLES["interrupted"])
            lines.append(text if self.most_failures is None else _line(text))
        if self.counts["interrupted"]:
            text = Text(f"interrupted runs go on with  snakemake --cores 2 {study}")
            text.stylize(STYLES["interrupted"])
            lines.append(_line(text))
        return lines


class _Columns:
    """Columns of a study's table, equally wide for all models.

    Args:
        rows: All rows.
        statuses: The status of each run.
        width: Columns of the terminal.
    """

    def __init__(self, rows: Sequence[Row], statuses: Mapping[str, RunStatus], width: int) -> None:
        self.statuses = statuses
        self.width = width
        self.running = any(status.state == "running" for status in statuses.values())
        self.bar = self.running and width >= _WIDE
        bits = max(4, *(len(row.cell.bits) for row in rows))
        done = max(4, *(2 * len(str(len(row.runs))) + 1 for row in rows))
        numbers = [*([_BAR] if self.bar else []), 4, 7, 8] if self.running else []
        around = sum(n + 2 for n in (bits, done, *numbers))
        label = min(max(len(row.cell.label) for row in rows), width - around - _STATE - 2)
        self.widths = [bits, max(6, label), done, *numbers]

    def heading(self) -> Table:
        """Return the row of column names."""
        names = ["bits", "method", "done"]
        names += [*([""] if self.bar else []), "%", "steps/s", "left"] if self.running else []
        table = self._empty()
        table.add_row(*(Text(name, "dim") for name in [*names, ""]))
        return table

    def table(self, rows: Iterator[Row]) -> Table:
        """Return a table of some rows."""
        table = self._empty()
        for row in rows:
            statuses = [self.statuses[run.id] for run in row.runs]
            done = f"{tally(statuses)['done']}/{len(statuses)}"
            label = _middle(row.cell.label, self.widths[1])
            table.add_row(row.cell.bits, label, done, *self._numbers(statuses), _states(statuses))
        return table

    def _empty(self) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        for index, width in enumerate(self.widths):
            table.add_column(width=width, no_wrap=True, justify="left" if index < 2 else "right")
        rest = self.width - sum(width + 2 for width in self.widths)
        table.add_column(width=max(1, rest), no_wrap=True)
        return table

    def _numbers(self, statuses: Sequence[RunStatus]) -> list[RenderableType]:
        if not self.running:
            return []
        now = progress(statuses)
        if now is None:
            return [""] * (len(self.widths) - 3)
        bar: list[RenderableType] = [ProgressBar(1.0, now.share)] if self.bar else []
        rate = significant(now.rate) if now.rate else ""
        left = duration(now.left) if now.left is not None else ""
        return [*bar, f"{100 * now.share:.0f}", rate, left]


def _states(statuses: Sequence[RunStatus]) -> Text:
    """Return the states of a row's runs; waiting ones only if there are no others.

    Runs that were made by other code are counted beside their state.
    """
    other = sum(bool(status.changed) for status in statuses)
    mark = Text(f", {other} by other code" if other else "", STYLES["interrupted"])
    return _present_states(statuses) + mark


def _present_states(statuses: Sequence[RunStatus]) -> Text:
    counts = tally(statuses)
    states = [s for s in ("failed", "interrupted", "running") if counts[s]]
    if not states:
        states = ["waiting" if counts["waiting"] else "done"]
    if states == ["done"]:
        return Text("done", STYLES["done"])
    return Text(", ").join(Text(f"{counts[s]} {s}", STYLES[s]) for s in states)


def _middle(text: str, width: int) -> str:
    """Shorten a text in its middle, since methods' names differ at their ends."""
    if len(text) <= width:
        return text
    first = (width - 1) // 2
    return f"{text[:first]}…{text[len(text) - (width - 1 - first) :]}"


def _line(text: Text) -> Text:
    """Keep a text on one line, with an ellipsis."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
