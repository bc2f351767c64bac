"""What the figures of recordings share: their data's check, and CGA's boundary ranges."""

import pandas as pd

from ofq.errors import UserError
from ofq.report.collect import Records
from ofq.study.method import Band


def require_recorded(records: Records, frame: pd.DataFrame, name: str, key: str) -> None:
    """Refuse to draw a figure of what no run has recorded.

    Args:
        records: The study.
        frame: What was recorded.
        name: The figure.
        key: The key of a stage's ``recording`` that asks for it.

    Raises:
        UserError: There is nothing; it says what to do.
    """
    if frame.empty:
        raise UserError(
            f"study '{records.name}': figure '{name}' needs recordings that none of its finished "
            f"runs made; set 'recording: {{{key}: N}}' in the stages of recipe "
            f"'{records.study.recipe}' and train anew (runs keep their names: move their folders "
            "away), or take the figure out of the study's 'figures'"
        )


def boundary_ranges(records: Records) -> dict[str, float]:
    """The boundary range of each method whose cells end with CGA."""
    found = {}
    for cell in records.cells:
        annealing = cell.runs[0].config.annealing
        if isinstance(annealing, Band):
            found[cell.method] = annealing.boundary_range
    return found
