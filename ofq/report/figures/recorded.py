"""Helpers of figures of recorded weights: reading them, and CGA's boundary ranges."""

from itertools import product

import pandas as pd

from ofq.config.method import CgaConfig
from ofq.report.collect import Records
from ofq.report.figures.looks import RELEASED_RANGE
from ofq.report.figures.registry import NothingToDraw
from ofq.runs.folder import Table


def of_first_model(records: Records, table: Table, key: str) -> tuple[str, pd.DataFrame]:
    """Read the recorded rows of the study's first model that has any.

    Args:
        records: The study.
        table: The table that was recorded.
        key: The key of a stage's ``probes`` that enables it.

    Returns:
        The model and its rows.

    Raises:
        NothingToDraw: Nothing was recorded; the message says what to do.
    """
    for model in records.study.models:
        rows = records.curves.read(table, model)
        if not rows.empty:
            return model, rows
    raise nothing_recorded(records, key)


def of_first_bits(
    records: Records, table: Table, key: str, first_seed: bool = False
) -> tuple[str, str, pd.DataFrame]:
    """Return the first model and bits with recorded rows, and these rows."""
    for model, bits in product(records.study.models, records.study.bits):
        rows = records.curves.read(table, model, bits, first_seed)
        if not rows.empty:
            return model, bits, rows
    raise nothing_recorded(records, key)


def nothing_recorded(records: Records, key: str) -> NothingToDraw:
    """Return the reason why a figure waits: no run recorded what a key of ``probes`` enables."""
    if (records.runs["method"] == "fp").all():
        return NothingToDraw("no quantized run has finished")
    return NothingToDraw(
        f"no finished run recorded it. 'probes: {{{key}: N}}' in the stages of recipe "
        f"'{records.study.recipe}' makes new ones do so; runs keep their names, so to train "
        "one anew, move its folder away"
    )


def boundary_ranges(records: Records) -> dict[str, float]:
    """Return the boundary range of each method whose cells end with CGA."""
    ranges = {}
    for cell in records.cells:
        annealing = getattr(cell.runs[0].config, "annealing", None)
        if isinstance(annealing, CgaConfig):
            ranges[cell.method] = annealing.boundary_range
    return ranges


def range_name(boundary_range: float, between: str = " ") -> str:
    """Return a boundary range as text that says which one is OFQ's.

    Args:
        boundary_range: The range in quantization steps.
        between: What stands between the number and the mark.
    """
    mark = f"{between}(OFQ)" if boundary_range == RELEASED_RANGE else ""
    return f"{boundary_range:g}{mark}"
