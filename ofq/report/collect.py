"""Collection of run folders into tidy frames, from which all of a report is made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ofq.config import Cell, Run, Study, Workspace
from ofq.config.claims import Claim
from ofq.config.method import Method
from ofq.config.published import Difference
from ofq.config.reference import Reference
from ofq.errors import UserError
from ofq.monitor.estimate import Sample
from ofq.monitor.status.runs import StudyStatus
from ofq.report.curves import KEYS, Curves, DamagedTables, names_of
from ofq.runs.folder import RunFolder
from ofq.runs.own_code import changed_runs
from ofq.runs.record import RESULT, Damaged, Record
from ofq.tracking.sent import mlflow_runs


@dataclass(frozen=True)
class Records:
    """Records of a study's run folders.

    Every frame has the columns of :data:`ofq.report.curves.KEYS`; rates are in percent, flips per
    1,000 weights and step. Curves are those of quantized cells, QAT first and CGA after it, with
    epochs and steps numbered continuously.

    Attributes:
        name: The study's name.
        study: Its config.
        dataset: Title of its data set.
        methods: The configs of its methods by name, in the study's order.
        cells: Its cells, full-precision baselines first.
        runs: One row per cell and seed: run id, chain of runs, final numbers, oscillation; the
            commits of all the chain's attempts, ``-dirty`` where code differed from them, ``none``
            outside git, ``+MODULE@HASH`` for the user's own module; and the differences of its
            stages' recipes from the published one.
        curves: Reader of the curves.
        metrics: Curves of the metrics, one row per cell, seed and epoch.
        correct: Masks of the evaluation images that each run classifies correctly, by the run's
            id, where they are recorded.
        references: Results that others reported, with which the study is compared.
        claims: Claims of the files that the study names, by name.
        reasons: Why a cell's result or some of its seeds are missing, by model, bits and method:
            ``damaged`` with the files' names, ``failed``, ``running``, ``interrupted`` or
            ``not run``.
        damaged: Faults of damaged records, by the run's id; these runs are left out.
        changed: Modules of the user's own that have changed since a run was made, by the id of each
            run of the shown chains.
        samples: Times of the QAT runs by the run's id, where recorded, of a study with baselines.
        resplit: Number of evaluation images over that of training images, where each seed splits
            one set of images anew; else 0.
    """

    name: str
    study: Study
    dataset: str
    methods: dict[str, Method]
    cells: tuple[Cell, ...]
    runs: pd.DataFrame
    curves: Curves
    metrics: pd.DataFrame
    correct: dict[str, NDArray[np.bool_]]
    references: tuple[Reference, ...]
    claims: dict[str, Claim]
    reasons: dict[tuple[str, str, str], str]
    damaged: dict[str, Damaged]
    changed: dict[str, list[str]]
    samples: dict[str, Sample]
    resplit: float

    @property
    def primary(self) -> str:
        """Column of the study's primary measure: ``top1`` or ``loss``."""
        return str(self.runs["primary"].iloc[0])

    @property
    def labels(self) -> dict[str, str]:
        """Label of each quantized method in tables and figures, in the study's order."""
        return {c.method: c.label for c in self.cells if c.method != "fp"}

    def of(self, frame: pd.DataFrame, **keys: str | int) -> pd.DataFrame:
        """Return the rows of a frame whose key columns have the given values."""
        masks = [(frame[key] == value).to_numpy(bool) for key, value in keys.items()]
        return frame[np.logical_and.reduce(masks)] if masks else frame

    def runs_of(self, cell: Cell) -> pd.DataFrame:
        """Return the rows of ``runs`` of a cell."""
        return self.of(self.runs, model=cell.model, bits=cell.bits, method=cell.method)


def collect(workspace: Workspace, study: str, damaged: dict[str, Damaged] | None = None) -> Records:
    """Read a study's records; skip runs that are unfinished or damaged, and give the reasons.

    Args:
        workspace: The checkout's config.
        study: The study's name.
        damaged: Known faults, by the run's id.

    Raises:
        UserError: No cell has a finished run whose record is sound.
    """
    faults = dict(damaged or {})
    while True:
        try:
            return _collect(workspace, study, faults)
        except DamagedTables as found:
            faults |= found.faults


def _collect(workspace: Workspace, study: str, damaged: dict[str, Damaged]) -> Records:
    grid = workspace.grid(study)
    references = tuple(r for r in workspace.references(study) if r.by_others)
    dataset = workspace.dataset(workspace.recipe_of(study).dataset)
    root = workspace.results / "runs"
    found = {name: _open(root / name, name, damaged) for name in grid.runs()}
    opened = {name: record for name, record in found.items() if record is not None}
    damaged = damaged | {name: r.fault for name, r in opened.items() if r.fault is not None}
    known = {name: record for name, record in opened.items() if name not in damaged}
    links = [
        (cell, run)
        for cell in grid.cells
        for run in cell.runs
        if run.id in known and not _damaged_links(run, damaged)
    ]
    if not links:
        raise UserError(_nothing_to_show(study, list(damaged.values())))
    curves = Curves(links, root, {name: r.record for name, r in known.items() if r.record})
    metrics = curves.read("metrics")
    runs_folder = f"{workspace.site.results}/runs"
    origins = {name: r.origin for name, r in known.items() if r.origin is not None}
    rows = [
        {
            **_final(cell, run, known[run.id].result),
            "command": f"snakemake --cores 2 {runs_folder}/{run.id}/result.json",
            "mlflow_runs": " ".join(mlflow_runs(RunFolder(root / run.id))),
            **_origin_of(run, origins, damaged),
            **known[run.id].sizes,
        }
        for cell, run in links
    ]
    shown = {run.id for _, run in links}
    marks = {name: known[name].correct for name in shown}
    config = workspace.study(study)
    known_methods = workspace.methods_of(study)
    methods = {name: known_methods[name] for name in config.methods}
    return Records(
        study, config, dataset.title, methods, grid.cells, _runs(rows, metrics), curves, metrics,
        correct={name: kept for name, kept in marks.items() if kept is not None},
        references=references, claims=workspace.claims(study),
        reasons=_reasons(workspace, study, shown, damaged), damaged=damaged,
        changed=changed_runs(workspace, {r.id: r for _, last in links for r in last.chain()}),
        samples=_samples(grid.runs(), known) if config.baselines else {},
        resplit=dataset.resplit or 0.0,
    )  # fmt: skip


def _samples(runs: dict[str, Run], known: dict[str, "_Opened"]) -> dict[str, Sample]:
    """Return the times of finished QAT runs, by the run's id."""
    found: dict[str, Sample] = {}
    for name, run in runs.items():
        if run.config.stage == "qat" and name in known:
            opened = known[name]
            attempt = opened.origin.last_attempt if opened.origin else {}
            seconds = opened.result.get("seconds")
            sample = Sample.of_run(run.config.payload(), seconds, attempt)
            found |= {} if sample is None else {name: sample}
    return found


@dataclass(frozen=True)
class _Opened:
    """Content of a finished run that is read at once; tables are read later.

    Attributes:
        record: The record; None if it is damaged.
        fault: The fault of a damaged record.
        result: The final results.
        origin: The part of its provenance that reports show.
        sizes: Sizes of its exported model.
        correct: Mask of the evaluation images that it classifies correctly.
    """

    record: Record | None = None
    fault: Damaged | None = None
    result: dict[str, Any] = field(default_factory=dict)
    origin: "_Origin | None" = None
    sizes: dict[str, int] = field(default_factory=dict)
    correct: NDArray[np.bool_] | None = None


def _open(path: Path, name: str, damaged: dict[str, Damaged]) -> _Opened | None:
    """Read and check one run; None if it hasn't finished."""
    if name in damaged:
        return _Opened(fault=damaged[name])
    try:
        record = Record.open(path)
        if record is None:
            return None
        result, provenance = record.result, record.provenance()
        if result["id"] != name:
            raise Damaged(path / RESULT, f"is of another run, {result['id']}")
        return _Opened(
            record, None, result, _Origin.of(provenance), record.sizes(), record.correct()
        )
    except Damaged as fault:
        return _Opened(fault=fault)


def _damaged_links(run: Run, damaged: dict[str, Damaged]) -> list[Damaged]:
    """Return the faults of a run, and of the earlier runs that its curves are made of."""
    counted = [link for link in run.chain() if link is run or link.config.stage != "fp"]
    return [damaged[link.id] for link in counted if link.id in damaged]


def _nothing_to_show(study: str, faults: list[Damaged]) -> str:
    if faults:
        first = f"{faults[0]}{f' ({len(faults)} runs are damaged)' if len(faults) > 1 else ''}"
        return f"study '{study}': none of its cells has a finished run that is whole: {first}"
    return (
        f"study '{study}': none of its cells has a finished run; "
        f"train them: snakemake --cores 2 {study}"
    )


def _reasons(
    workspace: Workspace, study: str, shown: set[str], damaged: dict[str, Damaged]
) -> dict[tuple[str, str, str], str]:
    """Return why cells lack results: damage, or the state of the runs in their chains."""
    cells = workspace.grid(study).cells
    lacking = [cell for cell in cells if any(run.id not in shown for run in cell.runs)]
    if not lacking:
        return {}
    status = StudyStatus(workspace, study)
    states = {name: run.state for name, run in status.read().items()}
    reasons: dict[tuple[str, str, str], str] = {}
    for cell in lacking:
        missing = [run for run in cell.runs if run.id not in shown]
        files = dict.fromkeys(f.file for run in missing for f in _damaged_links(run, damaged))
        on_the_way = {states[link.id] for run in missing for link in run.chain()}
        state = next((s for s in ("failed", "running", "interrupted") if s in on_the_way), None)
        reasons[cell.place] = f"damaged: {', '.join(files)}" if files else state or "not run"
    return reasons


def mid_epoch(metrics: pd.DataFrame) -> int:
    """Return the median epoch of the QAT stage, when the learning rate is still high."""
    return int(_middle(metrics.loc[metrics["stage"] == "qat", "epoch"].max()))


def _middle(last: Any) -> Any:
    """Return the median epoch of stages of given length, a number or an array."""
    return (last + 1) // 2


def _runs(rows: list[dict[str, Any]], metrics: pd.DataFrame) -> pd.DataFrame:
    """Return ``runs``, from its rows and the oscillation in the curves; sizes are integers."""
    frame = pd.DataFrame(rows).merge(_oscillation(metrics), "left", on=KEYS)
    return frame.astype({c: "Int64" for c in frame.columns if c.endswith("_bytes")})


def _final(cell: Cell, run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """Return the final results of one cell and seed."""
    names = ("primary", "top1", "loss", "correct", "images", "epochs", "steps", "seconds")
    return {
        **names_of(cell, run),
        "label": cell.label,
        "run": run.id,
        **{name: result.get(name) for name in names},
    }


@dataclass(frozen=True)
class _Origin:
    """Part of a run's ``provenance.json`` that reports show.

    Attributes:
        commits: The commits of its attempts.
        differences: Differences of its recipe from the published one; None if none was published.
        last_attempt: The devices of its last attempt, and the version of CUDA, where recorded.
    """

    commits: list[str]
    differences: list[str] | None
    last_attempt: dict[str, Any]

    @classmethod
    def of(cls, provenance: dict[str, Any]) -> "_Origin":
        comparison = provenance.get("recipe")
        if comparison is not None:
            comparison = [str(Difference(**found)) for found in comparison["differences"]]
        attempts = provenance["attempts"]
        last = {key: attempts[-1].get(key) for key in ("devices", "cuda")}
        return cls([_commit(attempt) for attempt in attempts], comparison, last)


def _commit(attempt: dict[str, Any]) -> str:
    """Return the commit as ``git describe --dirty`` has it, with hashes of the user's modules."""
    changed = attempt["diff"] or attempt["untracked"]
    own = attempt.get("modules") or [attempt.get("module")]
    modules = [f"+{module['name']}@{str(module['sha256'])[:8]}" for module in own if module]
    return f"{attempt['commit'] or 'none'}{'-dirty' if changed else ''}{''.join(modules)}"


def _origin_of(
    run: Run, origins: dict[str, _Origin], damaged: dict[str, Damaged]
) -> dict[str, str]:
    """Return the origin of a run's chain, all attempts of all stages; ``damaged`` if unreadable."""
    chain = list(reversed(list(run.chain())))
    known = {link.config.stage: origins[link.id] for link in chain if link.id in origins}
    compared = {s: o.differences for s, o in known.items() if o.differences is not None}
    differences = [f"{stage}: {text}" for stage, texts in compared.items() for text in texts]
    commits = dict.fromkeys(commit for origin in known.values() for commit in origin.commits)
    if any(link.id in damaged for link in chain):
        commits["damaged"] = None
    return {
        "chain": " > ".join(link.id for link in chain),
        "recipe_differences": "; ".join(differences) or ("none" if compared else ""),
        "commit": " ".join(commits),
    }


def _oscillation(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the oscillation mid-run and at the end of each run's chain; NaN if not recorded."""
    quantities = ["oscillation_rate", "flips", "in_boundary_range"]
    curves = metrics.reindex(columns=[*KEYS, "stage", "epoch", *quantities])
    last = (
        curves[curves["stage"] == "qat"].groupby(KEYS)["epoch"].max().rename("last").reset_index()
    )
    known = curves.merge(last, "left", on=KEYS)
    moments = {
        "mid": known[known["epoch"] == _middle(known["last"])],
        "end": curves.drop_duplicates(KEYS, keep="last"),
    }
    sides = [
        rows.set_index(KEYS)[quantities].add_suffix(f"_{moment}")
        for moment, rows in moments.items()
    ]
    columns = [f"{q}_{moment}" for q in quantities for moment in moments]
    summary = pd.concat(sides, axis=1)[columns].reset_index()
    return summary.astype({key: "str" for key in KEYS if key != "seed"})
