"""Curves of a study's cells, read from run folders' tables into one frame.

A report of thousands of runs spends most of its time here, so tables are read once, stay in
Arrow's format as long as possible, and are converted to one frame at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ofq.config import Cell, Run
from ofq.config.fields import Stage
from ofq.runs.record import RESULT, Damaged, Record, Table

KEYS = ["model", "bits", "method", "seed"]
"""Columns that identify a run of a cell in every frame."""

_STAGES: dict[Table, tuple[Stage, ...]] = {"noise": ("noise",)}
"""Stages that record a table, for tables recorded by others than the quantized trainings."""


class DamagedTables(Exception):
    """Raised when tables of some runs are damaged, so that nothing of these runs may be shown.

    Attributes:
        faults: The faults, by the run's id.
    """

    def __init__(self, faults: dict[str, Damaged]) -> None:
        super().__init__()
        self.faults = faults


@dataclass(frozen=True)
class _Piece:
    """Part of a cell's curve that one run of a chain gives.

    Attributes:
        names: Values of :data:`KEYS` and ``stage`` in each of its rows.
        rows: Its rows.
        before: Number of epochs and steps of the runs before it, by column.
    """

    names: dict[str, Any]
    rows: pa.Table
    before: dict[str, int]


def names_of(cell: Cell, run: Run) -> dict[str, Any]:
    """Return the values of :data:`KEYS` for a cell's run."""
    return dict(zip(KEYS, (*cell.place, run.config.seed), strict=True))


class Curves:
    """Reader of a study's curves: tables of its quantized cells, each chain of runs as one.

    Args:
        links: Cells, each with one of its finished runs.
        runs: Folder of the run folders.
        records: Records of the study's finished runs, by the run's id.

    Attributes:
        files: The files that were read so far.
    """

    def __init__(
        self,
        links: list[tuple[Cell, Run]],
        runs: Path,
        records: Mapping[str, Record],
    ) -> None:
        self.links = [(cell, run) for cell, run in links if cell.method != "fp"]
        self.runs = runs
        self.records = records
        self.files: set[Path] = set()
        self._frames: dict[tuple[Table, str | None, str | None, bool], pd.DataFrame] = {}

    def read(
        self,
        table: Table,
        model: str | None = None,
        bits: str | None = None,
        first_seed: bool = False,
    ) -> pd.DataFrame:
        """Read one table of all cells, or of those of one model or bits; open no other files.

        For each cell and seed it has one row for: each epoch (``metrics``); epoch, layer and role
        (``layers``); recorded step and weight (``trajectories``); recorded epoch and role
        (``histograms``); epoch, role and boundary range (``sign_changes``); epoch and attention
        layer (``joint_flips``); epoch and quantized activation (``activations``); draw of injected
        noise, step 0 being without (``noise``).

        Args:
            table: The table's name.
            model: Model of the cells; None for all.
            bits: Bits of the cells; None for all.
            first_seed: Whether to read only one run of each cell: that of the lowest seed among
                those with the table.

        Returns:
            The rows with :data:`KEYS` and ``stage``, epochs and steps numbered continuously over
            stages, text as categories; empty if no run has any. ``flips`` is NaN at epoch 0, before
            any step.

        Raises:
            DamagedTables: Tables are damaged, or missing although the run recorded them; or a run
                that others build on hasn't finished.
        """
        key = (table, model, bits, first_seed)
        if key not in self._frames:
            self._frames[key] = self._curves(*key)
        return self._frames[key]

    def _curves(
        self, table: Table, model: str | None, bits: str | None, first_seed: bool
    ) -> pd.DataFrame:
        wanted = _STAGES.get(table, ("qat", "cga"))
        links = [link for link in self.links if _is_of(link[0], model, bits)]
        stages = {run.id: _stages(run, wanted) for _, run in links}
        if first_seed:
            recorded = [link for link in links if self._has(table, stages[link[1].id])]
            links = _of_lowest_seed(recorded)
        ids = dict.fromkeys(stage.id for _, run in links for stage in stages[run.id])
        tables: dict[str, pa.Table] = {}
        faults: dict[str, Damaged] = {}
        for name in ids:
            try:
                tables[name] = self._rows(name, table)
            except Damaged as fault:
                faults[name] = fault
        if faults:
            raise DamagedTables(faults)
        pieces = [
            piece
            for cell, run in links
            for piece in _pieces(names_of(cell, run), stages[run.id], tables, self.records)
        ]
        return _join(pieces) if pieces else pd.DataFrame(columns=KEYS)

    def _has(self, table: Table, stages: list[Run]) -> bool:
        records = [self.records[run.id] for run in stages if run.id in self.records]
        return any(record.has(f"{table}.parquet") for record in records)

    def _rows(self, name: str, table: Table) -> pa.Table:
        if name not in self.records:
            fault = "missing, but a run that builds on this one has finished"
            raise Damaged(self.runs / name / RESULT, fault)
        self.files.add(self.runs / name / f"{table}.parquet")
        return self.records[name].table(table)


def _is_of(cell: Cell, model: str | None, bits: str | None) -> bool:
    return model in (None, cell.model) and bits in (None, cell.bits)


def _of_lowest_seed(links: list[tuple[Cell, Run]]) -> list[tuple[Cell, Run]]:
    lowest: dict[tuple[str, ...], tuple[Cell, Run]] = {}
    for cell, run in sorted(links, key=lambda link: link[1].config.seed):
        lowest.setdefault(cell.place, (cell, run))
    return list(lowest.values())


def _stages(run: Run, wanted: tuple[Stage, ...]) -> list[Run]:
    """Return the runs of a chain that curves are made of, first stage first."""
    return [link for link in reversed(list(run.chain())) if link.config.stage in wanted]


def _pieces(
    names: dict[str, Any],
    stages: list[Run],
    tables: Mapping[str, pa.Table],
    records: Mapping[str, Record],
) -> Iterator[_Piece]:
    """Yield the parts of one chain's curve."""
    epochs = steps = 0
    for link in stages:
        rows, result = tables[link.id], records[link.id].result
        if len(rows):
            before = {"epoch": epochs, "step": steps}
            yield _Piece({**names, "stage": link.config.stage}, rows, before)
        epochs, steps = epochs + result["epochs"], steps + result["steps"]


def _join(pieces: list[_Piece]) -> pd.DataFrame:
    rows = pa.concat_tables([piece.rows for piece in pieces], promote_options="permissive")
    # a name repeats in many rows, and categories make filtering by it fast
    frame = rows.to_pandas(strings_to_categorical=True)
    # a column of only None has no type
    frame = frame.astype({c: float for c in frame.columns if frame[c].isna().all()})
    places = np.repeat(np.arange(len(pieces)), [len(piece.rows) for piece in pieces])
    names = pd.DataFrame([piece.names for piece in pieces])
    names = names.astype({c: "category" for c in names.columns if c != "seed"})
    frame = pd.concat([frame, names.take(places).reset_index(drop=True)], axis=1)
    if {"flips", "epoch"} <= set(frame.columns):
        # before the first step nothing can flip, and no rate exists
        frame["flips"] = frame["flips"].where(frame["epoch"] > 0)
    # CGA's epoch 0 repeats the state at the end of QAT
    mask = (frame["stage"] != "cga") | (frame.get("epoch", 1) > 0)
    for column in [c for c in ("epoch", "step") if c in frame]:
        frame[column] += np.array([piece.before[column] for piece in pieces])[places]
    return frame[mask].reset_index(drop=True)
