"""Which rows of a table are shown where not all of them have room."""

from collections.abc import Mapping, Sequence

from ofq.monitor.status.figures import tally
from ofq.monitor.status.runs import Row, RunStatus

_URGENT = ("failed", "running", "interrupted", "waiting")


def height(rows: Sequence[Row]) -> int:
    """Lines that rows take; each model takes one more, for its name."""
    return len(rows) + len({row.cell.model for row in rows})


def shares(wanted: Sequence[int], lines: int) -> list[int]:
    """Lines for each of some parts: what it wants, or as many as the others that want too much."""
    given = [0] * len(wanted)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    for position, index in enumerate(order):
        given[index] = min(wanted[index], lines // (len(order) - position))
        lines -= given[index]
    return given


def fitting(rows: list[Row], statuses: Mapping[str, RunStatus], lines: int) -> list[Row]:
    """The rows that want attention most, in the order of all.

    Args:
        rows: All rows.
        statuses: How each run is.
        lines: How many there is room for.

    Returns:
        All rows if they fit; else as many as do, unfinished ones first, less one line that says
        how many were left out.
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
