"""Which rows of a table are shown where not all of them have room."""

from collections.abc import Mapping

from ofq.status.figures import tally
from ofq.status.look import Look, Row

_URGENT = ("failed", "running", "interrupted", "waiting")


def fitting(rows: list[Row], looks: Mapping[str, Look], lines: int) -> list[Row]:
    """The rows that want attention most, in the order of all.

    Args:
        rows: All rows.
        looks: How each run is.
        lines: How many there are room for; each model takes one more, for its name.

    Returns:
        All rows if they fit; else as many as do, unfinished ones first, less one line that says
        how many were left out.
    """
    if len(rows) + len({row.cell.model for row in rows}) <= lines:
        return rows
    shown: set[int] = set()
    models: set[str] = set()
    room = lines - 1
    for index in sorted(range(len(rows)), key=lambda index: _rank(rows[index], looks)):
        model = rows[index].cell.model
        room -= 1 if model in models else 2
        if room < 0:
            break
        shown.add(index)
        models.add(model)
    return [row for index, row in enumerate(rows) if index in shown]


def _rank(row: Row, looks: Mapping[str, Look]) -> int:
    counts = tally(looks[run.id] for run in row.runs)
    return next((n for n, state in enumerate(_URGENT) if counts[state]), len(_URGENT))
