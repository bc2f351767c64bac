"""Selection of a table's rows where there isn't room for all."""

from collections.abc import Mapping, Sequence

from ofq.monitor.status.figures import tally
from ofq.monitor.status.runs import Row, RunStatus

_URGENT = ("failed", "running", "interrupted", "waiting")


def height(rows: Sequence[Row]) -> int:
    """Return the number of lines that rows take; each model takes one more, for its name."""
    return len(rows) + len({row.cell.model for row in rows})


def shares(wanted: Sequence[int], lines: int) -> list[int]:
    """Divide lines between parts: each gets what it wants, or an equal share of the rest."""
    allotment = [0] * len(wanted)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    for position, index in enumerate(order):
        allotment[index] = min(wanted[index], lines // (len(order) - position))
        lines -= allotment[index]
    return allotment


def fitting(rows: list[Row], statuses: Mapping[str, RunStatus], lines: int) -> list[Row]:
    """Return the most urgent rows that fit, in their original order.

    Args:
        rows: All rows.
        statuses: The status of each run.
        lines: Number of lines available.

    Returns:
        All rows if they fit; else as many as fit beside one line that counts those left out,
        unfinished ones first.
    """
    if height(rows) <= lines:
        return rows
    shown: set[int] = set()
    models: set[str] = set()
    room = lines - 1
    for index in sorted(range(len(rows)), key=lambda index: _rank(rows[index], statuses)):
        model = rows[index].cell.model
        room -= 1 if model in models else 2
        if room < 0:
            break
        shown.add(index)
        models.add(model)
    return [row for index, row in enumerate(rows) if index in shown]


def _rank(row: Row, statuses: Mapping[str, RunStatus]) -> int:
    counts = tally(statuses[run.id] for run in row.runs)
    return next((n for n, state in enumerate(_URGENT) if counts[state]), len(_URGENT))
