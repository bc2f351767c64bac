"""One run, from its config to its finished folder: where study, training and record meet."""

import time
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from ofq.atomic import write_file, write_json
from ofq.errors import UserError
from ofq.interruption import Interrupted, StopRequest
from ofq.progress import Bar, Lines, display, summary
from ofq.study import Run, RunConfig, Workspace
from ofq.study.config import HUB
from ofq.study.grid import describe
from ofq.tracking import RunFolder
from ofq.tracking.folder import WEIGHTS
from ofq.tracking.provenance import gather


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
        UserError: The folder can't be written, or a run that this one builds on isn't complete.
    """
    for needed in run.needs():
        if not run_folder(workspace, needed).complete():
            raise UserError(f"{run.id} builds on {needed.id}; run `ofq train {needed.id}` first")
    folder = run_folder(workspace, run)
    folder.open(describe(run))
    provenance = {**workspace.uses(run, studies), **gather(workspace.root)}
    write_json(folder.path / "provenance.json", provenance)
    folder.event("opened", commit=provenance["commit"], host=provenance["host"])
    return folder


def train(
    workspace: Workspace, run: Run, folder: RunFolder, console: Console, stop: StopRequest
) -> None:
    """Train a run in its opened folder, resuming where an earlier attempt stopped.

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
    from ofq.training.stage import prepare, use_threads
    from ofq.training.weights import save_weights

    assert run.config.training is not None
    use_threads(run.resources.threads)
    checkpoints = CheckpointStore(folder.path / "checkpoint")
    shown = display(console, run.config.training.epochs)
    began = time.time()
    try:
        trainer = prepare(
            run.config,
            _weights(workspace, run.parent),
            _weights(workspace, run.teacher),
            _Recorder(folder, shown),
            checkpoints,
            stop,
            _pretrained(workspace, run.config),
        )
        metrics = trainer.run()
        write_file(folder.path / WEIGHTS, lambda path: save_weights(trainer.model, path))
    except Interrupted as request:
        folder.event("interrupted", cause=str(request))
        raise
    except Exception as error:
        folder.event("failed", cause=traceback.format_exception_only(error)[-1].strip())
        raise
    finally:
        shown.end()
    folder.event("finished")
    folder.finish(_result(run, metrics, trainer.objective.primary, time.time() - began))
    checkpoints.clear()
    console.print(f"finished {run.id}: {summary(metrics)}", highlight=False, soft_wrap=True)


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
