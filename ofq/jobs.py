"""One run, from its config to its finished folder: where study, training and record meet."""

import hashlib
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ofq.atomic import write_file, write_json
from ofq.errors import UserError
from ofq.interruption import Interrupted, StopRequest
from ofq.progress import Bar, Lines, display, summary
from ofq.study import Run, RunConfig, Workspace
from ofq.study.config import HUB
from ofq.study.run import describe
from ofq.tracking import RunFolder
from ofq.tracking.folder import WEIGHTS
from ofq.tracking.provenance import gather

if TYPE_CHECKING:
    from torch import nn

_CHECKPOINT = "checkpoint"


class _Recorder:
    """Writes what training reports into the run folder, and shows it."""

    def __init__(self, folder: RunFolder, shown: Bar | Lines) -> None:
        self.folder = folder
        self.shown = shown

    def begin(self, done: int | None, total: int) -> None:
        self.folder.rewind(done)
        self.folder.event("started" if done is None else "resumed", step=done or 0, total=total)
        self.shown.begin(done, total)

    def step(self, step: int) -> None:
        self.shown.step(step)

    def epoch(self, metrics: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        self.folder.append("layers", layers)
        self.folder.append("metrics", [metrics])
        self.shown.epoch(metrics)

    def trajectory(self, rows: list[dict[str, Any]]) -> None:
        self.folder.append("trajectories", rows)


def run_folder(workspace: Workspace, run: Run) -> RunFolder:
    """The folder of a run."""
    return RunFolder(workspace.results / "runs" / run.id)


def open_folder(workspace: Workspace, run: Run, studies: list[str]) -> RunFolder:
    """Make a run's folder ready for an attempt, with its provenance.

    Raises:
        UserError: The folder can't be written, a run that this one builds on isn't complete, or
            a file that it starts from is missing.
    """
    for needed in run.needs():
        if not run_folder(workspace, needed).complete():
            raise UserError(f"{run.id} builds on {needed.id}; run `ofq train {needed.id}` first")
    inputs = _inputs(workspace, run, studies)
    folder = run_folder(workspace, run)
    folder.open(describe(run))
    provenance = {
        **workspace.uses(run, studies),
        "inputs": inputs,
        **gather(workspace.root),
    }
    write_json(folder.path / "provenance.json", provenance)
    folder.event("opened", commit=provenance["commit"], host=provenance["host"])
    return folder


def train(
    workspace: Workspace, run: Run, folder: RunFolder, console: Console, stop: StopRequest
) -> None:
    """Do a run in its opened folder: train it, or evaluate the checkpoint that it names.

    Training resumes where an earlier attempt stopped.

    Args:
        workspace: Where the run's parents are.
        run: What to train.
        folder: Its folder.
        console: Where to show progress.
        stop: Looked at after every step.

    Raises:
        UserError: Something that the run needs can't be had.
        Interrupted: A signal asked it to stop; the state is saved.
    """
    from ofq.training.checkpoint import CheckpointStore
    from ofq.training.stage import use_threads
    from ofq.training.weights import save_weights

    use_threads(run.resources.threads)
    work = _evaluate if run.config.stage == "released" else _train
    began = time.time()
    try:
        done = work(workspace, run, folder, console, stop)
        write_file(folder.path / WEIGHTS, lambda path: save_weights(done.model, path))
    except Interrupted as request:
        folder.event("interrupted", cause=str(request))
        raise
    except Exception as error:
        folder.event("failed", cause=traceback.format_exception_only(error)[-1].strip())
        raise
    folder.event("finished")
    folder.finish(_result(run, done.metrics, done.primary, time.time() - began))
    CheckpointStore(folder.path / _CHECKPOINT).clear()
    console.print(f"finished {run.id}: {summary(done.metrics)}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Done:
    """What a run comes to: its model, its last row of metrics, and the main one of them."""

    model: "nn.Module"
    metrics: dict[str, Any]
    primary: str


def _train(
    workspace: Workspace, run: Run, folder: RunFolder, console: Console, stop: StopRequest
) -> _Done:
    from ofq.training.checkpoint import CheckpointStore
    from ofq.training.stage import prepare

    assert run.config.training is not None
    shown = display(console, run.config.training.epochs)
    try:
        trainer = prepare(
            run.config,
            _weights(workspace, run.parent),
            _weights(workspace, run.teacher),
            _Recorder(folder, shown),
            CheckpointStore(folder.path / _CHECKPOINT),
            stop,
            _pretrained(workspace, run.config),
        )
        return _Done(trainer.model, trainer.run(), trainer.objective.primary)
    finally:
        shown.end()


def _evaluate(
    workspace: Workspace, run: Run, folder: RunFolder, console: Console, stop: StopRequest
) -> _Done:
    from ofq.training import evaluation
    from ofq.training.importing import import_released

    config = run.config
    assert config.checkpoint is not None
    assert config.quantization is not None
    if config.dataset == "digits":
        images = evaluation.digits(config.model, config.seed)
    else:
        images = evaluation.image_folder(workspace.data_folder(config.dataset), config.model)
    path = workspace.root / config.checkpoint
    imported = import_released(path, config.model, config.quantization, images.classes)
    folder.rewind(None)
    folder.event("started", dropped={r: len(names) for r, names in imported.reasons().items()})
    measures = evaluation.evaluate(imported.model, images, console, stop)
    metrics = {"epoch": 0, "step": 0, "time": time.time(), **measures}
    folder.append("metrics", [metrics])
    return _Done(imported.model, metrics, "top1")


def _inputs(workspace: Workspace, run: Run, studies: list[str]) -> dict[str, str]:
    """SHA-256 of each file that a run starts from, beside other runs' weights."""
    config, study = run.config, workspace.study_path(studies[0])
    recipe = workspace.recipe_path(workspace.study(studies[0]).recipe)
    named = {
        config.checkpoint: f"{study}: key 'checkpoints.{config.model}.{config.bits}'",
        config.pretrained: f"{recipe}: key 'pretrained'",
    }
    hashes = {}
    for name, key in named.items():
        if name is not None and name != HUB:
            path = workspace.root / name
            if not path.is_file():
                raise UserError(f"{key} is '{name}': no such file")
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _weights(workspace: Workspace, run: Run | None) -> Path | None:
    return None if run is None else run_folder(workspace, run).path / WEIGHTS


def _pretrained(workspace: Workspace, config: RunConfig) -> Path | None:
    if config.pretrained in (None, HUB):
        return None
    return workspace.root / str(config.pretrained)


def _result(run: Run, metrics: dict[str, Any], primary: str, seconds: float) -> dict[str, Any]:
    dropped = {"epoch", "step", "time", "lr"}
    final = {key: value for key, value in metrics.items() if key not in dropped}
    steps = {"epochs": metrics["epoch"], "steps": metrics["step"]}
    return {"id": run.id, "primary": primary, **final, **steps, "seconds": round(seconds, 1)}
