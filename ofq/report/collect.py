"""Run folders → tidy frames; everything a report says comes from here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ofq.errors import UserError
from ofq.status.look import Watch
from ofq.study import Cell, Run, Study, Workspace
from ofq.study.published import Difference
from ofq.study.reference import Reference
from ofq.tracking import RunFolder
from ofq.tracking.sent import mlflow_runs

KEYS = ["model", "bits", "method", "seed"]
"""The columns that name a run of a cell in every frame."""


@dataclass(frozen=True)
class Records:
    """What a study's run folders hold.

    Every frame has the columns of :data:`KEYS`; rates are in percent, flips per 1,000 weights and
    step. The curves (``metrics``, ``layers``, ``trajectories``) are those of quantized cells,
    QAT first and CGA after it, epochs and steps counted on.

    Attributes:
        name: The study's name.
        study: Its config.
        cells: Its cells, full-precision baselines first.
        runs: One row per cell and seed: run id, chain of runs, final numbers, oscillation.
        metrics: One row per cell, seed and epoch.
        layers: One row per cell, seed, epoch, layer and role.
        trajectories: One row per cell, seed, step and recorded weight; empty if none was recorded.
        correct: Which evaluation images each run is right about, by its id, where that is kept.
        references: What the study's numbers are held against.
        reasons: Why a cell's number or a part of its seeds is missing, by model, bits and method:
            ``failed``, ``running``, ``interrupted`` or ``not run``.
    """

    name: str
    study: Study
    cells: tuple[Cell, ...]
    runs: pd.DataFrame
    metrics: pd.DataFrame
    layers: pd.DataFrame
    trajectories: pd.DataFrame
    correct: dict[str, NDArray[np.bool_]]
    references: tuple[Reference, ...]
    reasons: dict[tuple[str, str, str], str]

    @property
    def primary(self) -> str:
        """The column of the number that the study is about: ``top1`` or ``loss``."""
        return str(self.runs["primary"].iloc[0])

    @property
    def labels(self) -> dict[str, str]:
        """What tables and figures print for each quantized method, in the study's order."""
        return {c.method: c.label for c in self.cells if c.method != "fp"}

    def of(self, frame: pd.DataFrame, **keys: str | int) -> pd.DataFrame:
        """The rows of a frame whose key columns have the given values."""
        for key, value in keys.items():
            frame = frame[frame[key] == value]
        return frame

    def runs_of(self, cell: Cell) -> pd.DataFrame:
        """The rows of ``runs`` of a cell."""
        return self.of(self.runs, model=cell.model, bits=cell.bits, method=cell.method)


def collect(workspace: Workspace, study: str) -> Records:
    """Read a study's run folders; what hasn't finished yet is passed over, and said.

    Raises:
        UserError: No cell has a finished run, or one is damaged.
    """
    grid, references = workspace.grid(study), tuple(workspace.references(study))
    root = workspace.results / "runs"
    folders = {name: RunFolder(root / name) for name in grid.runs()}
    finished = {name for name, folder in folders.items() if folder.result() is not None}
    links = [(cell, run) for cell in grid.cells for run in cell.runs if run.id in finished]
    if not links:
        raise UserError(
            f"study '{study}': none of its cells has a finished run; "
            f"train them: snakemake --cores 2 {study}"
        )
    curves = {
        table: _concat(_curve(cell, run, folders, table) for cell, run in links)
        for table in ("metrics", "layers", "trajectories")
    }
    runs_folder = f"{workspace.site.results}/runs"
    rows = [_final(cell, run, folders, curves["metrics"], runs_folder) for cell, run in links]
    complete = finished == folders.keys()
    reasons = {} if complete else _reasons(workspace, study, finished)
    marks = {run.id: folders[run.id].correct() for _, run in links}
    return Records(
        study, workspace.study(study), grid.cells, _runs(rows), **curves,
        correct={name: kept for name, kept in marks.items() if kept is not None},
        references=references, reasons=reasons,
    )  # fmt: skip


def _reasons(
    workspace: Workspace, study: str, finished: set[str]
) -> dict[tuple[str, str, str], str]:
    """Why cells lack numbers: the furthest that any run on the way to a missing one has come."""
    watch = Watch(workspace, study)
    states = {name: look.state for name, look in watch.look().items()}
    found: dict[tuple[str, str, str], str] = {}
    for cell in watch.grid.cells:
        missing = [run for run in cell.runs if run.id not in finished]
        if missing:
            on_the_way = {states[link.id] for run in missing for link in run.chain()}
            state = next((s for s in ("failed", "running", "interrupted") if s in on_the_way), None)
            found[cell.place] = state or "not run"
    return found


def _keys(cell: Cell, run: Run) -> dict[str, Any]:
    names = (cell.model, cell.bits, cell.method, run.config.seed)
    return dict(zip(KEYS, names, strict=True))


def _read(folder: RunFolder, table: str) -> pd.DataFrame:
    path = folder.path / f"{table}.parquet"
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        if table == "metrics":
            raise UserError(f"{path}: missing; move its folder away and train anew") from None
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); move its folder away and train anew") from None
    # A column of nothing but None has no type of its own.
    return frame.astype({c: float for c in frame.columns if frame[c].isna().all()})


def _curve(
    cell: Cell, run: Run, folders: dict[str, RunFolder], table: str
) -> Iterator[pd.DataFrame]:
    """One run's chain as one curve; a CGA run's state at epoch 0 is that of QAT's end."""
    if cell.method == "fp":
        return
    epochs = steps = 0
    for link in reversed(list(run.chain())):
        if link.config.stage in ("fp", "released"):
            continue
        rows, result = _read(folders[link.id], table), folders[link.id].result() or {}
        if link.config.stage == "cga" and "epoch" in rows:
            rows = rows[rows["epoch"] > 0]
        if not rows.empty:
            offsets = {"epoch": epochs, "step": steps}
            moved = {name: rows[name] + by for name, by in offsets.items() if name in rows}
            yield rows.assign(**_keys(cell, run), stage=link.config.stage, **moved)
        epochs, steps = epochs + result["epochs"], steps + result["steps"]


def _concat(curves: Iterator[Iterator[pd.DataFrame]]) -> pd.DataFrame:
    frames = [frame for curve in curves for frame in curve]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=KEYS)


def mid_epoch(metrics: pd.DataFrame) -> int:
    """The median epoch of the QAT stage: half the training done, the learning rate still high."""
    return (int(metrics.loc[metrics["stage"] == "qat", "epoch"].max()) + 1) // 2


def _final(
    cell: Cell,
    run: Run,
    folders: dict[str, RunFolder],
    metrics: pd.DataFrame,
    runs_folder: str,
) -> dict[str, Any]:
    """The row of one cell and seed in ``runs``."""
    folder, keys = folders[run.id], _keys(cell, run)
    result, attempts = folder.result() or {}, folder.attempts()
    chain = [link.id for link in reversed(list(run.chain()))]
    names = ("primary", "top1", "loss", "correct", "images", "epochs", "steps", "seconds")
    return {
        **keys,
        "label": cell.label,
        "run": run.id,
        "chain": " > ".join(chain),
        "command": f"snakemake --cores 2 {runs_folder}/{run.id}/result.json",
        "mlflow_runs": " ".join(mlflow_runs(folder)),
        "recipe_differences": _recipe_differences(folder),
        "commit": attempts[-1]["commit"] if attempts else None,
        "modified": any(attempt["diff"] or attempt["untracked"] for attempt in attempts),
        **{name: result.get(name) for name in names},
        **_oscillation(metrics, keys),
        **folder.sizes(),
    }


def _runs(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """``runs``; sizes are whole numbers, though some runs may have none."""
    frame = pd.DataFrame(rows)
    return frame.astype({c: "Int64" for c in frame.columns if c.endswith("_bytes")})


def _recipe_differences(folder: RunFolder) -> str | None:
    """What a run's recipe differs in from the published one; None if none was published."""
    comparison = folder.provenance().get("recipe")
    if comparison is None:
        return None
    return "; ".join(str(Difference(**found)) for found in comparison["differences"]) or "none"


def _oscillation(metrics: pd.DataFrame, keys: dict[str, Any]) -> dict[str, float]:
    """Oscillation mid-run and at the end of one run's chain; NaN where there is none."""
    quantities = ("oscillation_rate", "flips", "in_boundary_range")
    mine = metrics
    for key, value in keys.items():
        mine = mine[mine[key] == value]
    if mine.empty:
        return {f"{q}_{moment}": float("nan") for q in quantities for moment in ("mid", "end")}
    rows = {"mid": mine[mine["epoch"] == mid_epoch(mine)], "end": mine.tail(1)}
    return {
        f"{q}_{moment}": float(row[q].iloc[0]) if q in row and len(row) else float("nan")
        for q in quantities
        for moment, row in rows.items()
    }
