"""Run folders' tables → the curves of a study's cells, in one frame.

A report of thousands of runs spends most of its time here, so that tables are read once, stay
Arrow's until the last moment, and become one frame at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from ofq.errors import UserError
from ofq.study import Cell, Run
from ofq.study.fields import Stage
from ofq.tracking import RunFolder
from ofq.tracking.folder import Table

KEYS = ["model", "bits", "method", "seed"]
"""The columns that name a run of a cell in every frame."""

_STAGES: dict[Table, tuple[Stage, ...]] = {"noise": ("noise",)}
"""The stages that have a table's rows, for tables that others have than the quantized trainings."""


@dataclass(frozen=True)
class _Piece:
    """What one run of a chain adds to a cell's curve.

    Attributes:
        names: Values of :data:`KEYS` and ``stage`` in each of its rows.
        rows: Its rows.
        before: Epochs and steps of the runs before it, by column.
    """

    names: dict[str, Any]
    rows: pa.Table
    before: dict[str, int]


def names_of(cell: Cell, run: Run) -> dict[str, Any]:
    """The values of :data:`KEYS` for a cell's run."""
    return dict(zip(KEYS, (*cell.place, run.config.seed), strict=True))


def read_curves(
    links: list[tuple[Cell, Run]],
    folders: Mapping[str, RunFolder],
    results: Mapping[str, dict[str, Any]],
    table: Table,
) -> pd.DataFrame:
    """Read one table of all quantized cells; each chain of runs is one curve.

    Args:
        links: Cells, each with one of its finished runs.
        folders: The study's run folders, by the run's id.
        results: The numbers that finished ones ended with, likewise.
        table: Which of a run's tables.

    Returns:
        The runs' rows with :data:`KEYS` and ``stage``, epochs and steps counted on, text as
        categories; empty if no run has any.

    Raises:
        UserError: A table is damaged, metrics are missing, or a run that others build on hasn't
            finished.
    """
    wanted = _STAGES.get(table, ("qat", "cga"))
    stages = {run.id: _stages(run, wanted) for cell, run in links if cell.method != "fp"}
    ids = dict.fromkeys(link.id for chain in stages.values() for link in chain)
    tables = {name: _read(folders[name], table) for name in ids}
    for name in ids:
        if name not in results:
            raise UserError(
                f"{folders[name].path}: hasn't finished, but a run that builds on it has; "
                f"`ofq doctor {name}` says what to do"
            )
    pieces = [
        piece
        for cell, run in links
        for piece in _pieces(names_of(cell, run), stages.get(run.id, []), tables, results)
    ]
    return _join(pieces) if pieces else pd.DataFrame(columns=KEYS)


def _stages(run: Run, wanted: tuple[Stage, ...]) -> list[Run]:
    """The runs of a chain that curves are made of, first stage first."""
    return [link for link in reversed(list(run.chain())) if link.config.stage in wanted]


def _pieces(
    names: dict[str, Any],
    stages: list[Run],
    tables: Mapping[str, pa.Table],
    results: Mapping[str, dict[str, Any]],
) -> Iterator[_Piece]:
    """One chain as one curve."""
    epochs = steps = 0
    for link in stages:
        rows, result = tables[link.id], results[link.id]
        if len(rows):
            before = {"epoch": epochs, "step": steps}
            yield _Piece({**names, "stage": link.config.stage}, rows, before)
        epochs, steps = epochs + result["epochs"], steps + result["steps"]


def _read(folder: RunFolder, table: Table) -> pa.Table:
    path = folder.path / f"{table}.parquet"
    if not path.exists():
        if table == "metrics":
            raise UserError(f"{path}: missing; move its folder away and train anew")
        return pa.table({})
    try:
        return parquet.ParquetFile(path).read(use_threads=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); move its folder away and train anew") from None


def _join(pieces: list[_Piece]) -> pd.DataFrame:
    rows = pa.concat_tables([piece.rows for piece in pieces], promote_options="permissive")
    # a name stands in many rows, and is looked for in all of them
    frame = rows.to_pandas(strings_to_categorical=True)
    # a column of nothing but None has no type of its own
    frame = frame.astype({c: float for c in frame.columns if frame[c].isna().all()})
    places = np.repeat(np.arange(len(pieces)), [len(piece.rows) for piece in pieces])
    names = pd.DataFrame([piece.names for piece in pieces])
    names = names.astype({c: "category" for c in names.columns if c != "seed"})
    frame = pd.concat([frame, names.take(places).reset_index(drop=True)], axis=1)
    # CGA's state at epoch 0 is that of QAT's end
    kept = (frame["stage"] != "cga") | (frame.get("epoch", 1) > 0)
    for column in [c for c in ("epoch", "step") if c in frame]:
        frame[column] += np.array([piece.before[column] for piece in pieces])[places]
    return frame[kept].reset_index(drop=True)
