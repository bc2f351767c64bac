"""What the figures of recordings share: their data's check, and CGA's boundary ranges."""

import pandas as pd

from ofq.report.collect import Records
from ofq.report.figures.registry import NothingToDraw
from ofq.study.method import Band


def require_recorded(records: Records, frame: pd.DataFrame, key: str) -> None:
    """Refuse to draw a figure of what no run has recorded.

    Args:
        records: The study.
        frame: What was recorded.
        key: The key of a stage's ``recording`` that asks for it.

    Raises:
        NothingToDraw: There is nothing; it says what to do.
    """
    if frame.empty:
        raise NothingToDraw(
            f"no finished run recorded it. 'recording: {{{key}: N}}' in the stages of recipe "
            f"'{records.study.recipe}' makes new ones do so; runs keep their names, so to train "
            "one anew, move its folder away"
        )


def boundary_ranges(records: Records) -> dict[str, float]:
    """The boundary range of each method whose cells end with CGA."""
    found = {}
    for cell in records.cells:
        annealing = cell.runs[0].config.annealing
        if isinstance(annealing, Band):
            found[cell.method] = annealing.boundary_range
    return found
