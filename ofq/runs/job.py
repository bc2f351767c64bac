"""Execution of one run: checks, set-up of its folder, training or evaluation, result."""

import platform
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ofq.config import Run, TrainedRun, Workspace
from ofq.config.construction import constructions_of
from ofq.config.modules import import_modules
from ofq.config.run import CgaRun, QatRun, describe, training_of
from ofq.config.stage import split
from ofq.errors import TryAgain, UserError
from ofq.hardware import are_started, processes
from ofq.runs import inputs
from ofq.runs.attempt import CHECKPOINT, Attempt, run_folder
from ofq.runs.checkpoints import checkpoint_name, manifests
from ofq.runs.evaluations import Outcome, evaluate
from ofq.runs.own_code import OwnCode, made_with_of
from ofq.runs.progress import display, summary
from ofq.runs.provenance import NO_CHECKOUT, gather
from ofq.runs.ranks import ranks
from ofq.runs.recorder import Recorder, warn
from ofq.stopping import StopRequest

if TYPE_CHECKING:
    from ofq.config.datasets import DataFacts
    from ofq.training.data.images import ImageSource
    from ofq.training.distributed import Devices, SingleProcess
    from ofq.training.trainer import Session, Trainer


def check(workspace: Workspace, run: Run, studies: list[str], gpus: int) -> None:
    """Check that a run can start, before any of its files is written.

    Raises:
        UserError: This is an unpacked bundle; the run has finished, but its weights are gone; a run
            that it builds on isn't complete, a file that it starts from is missing, or its batch
            can't be split over the devices.
    """
    workspace.refuse_bundle("train")
    for link in (run, *run.needs()):
        folder = run_folder(workspace, link)
        if folder.is_record():
            raise UserError(
                f"{folder.path}: the record of a run that has ended, without its weights, as in an "
                "unpacked bundle; it is kept: to train the run again, move its folder away"
            )
    _check_devices(run, processes(gpus))
    import_modules(run.config)
    _check_models(workspace, run, studies)
    for needed in run.needs():
        if not run_folder(workspace, needed).complete():
            raise UserError(f"{run.id} builds on {needed.id}; run `ofq train {needed.id}` first")
    for line in inputs.missing_files(workspace, run.config, studies[0]):
        raise UserError(line)


def _check_models(workspace: Workspace, run: Run, studies: list[str]) -> None:
    """Refuse a model or quantization that is invalid for this run or one that builds on it.

    A run that several studies share is accepted if one of them is valid.

    Raises:
        UserError: The first study's mistake.
    """
    mistakes = []
    for study in studies:
        try:
            _check_models_of(workspace, run, study)
        except UserError as error:
            mistakes.append(error)
        else:
            return
    if mistakes:
        raise mistakes[0]


def _check_models_of(workspace: Workspace, run: Run, study: str) -> None:
    """Check the models of one study; all its cells of a model build on the full-precision run."""
    from ofq.training.construction import mistakes

    for wanted in constructions_of(workspace, study, run):
        for mistake in mistakes(wanted):
            raise UserError(mistake)


def _check_devices(run: Run, count: int) -> None:
    training = training_of(run.config)
    if training is not None:
        try:
            split(training.batch_size, count, run.resources.device_batch)
        except UserError as error:
            raise UserError(f"{run.id}: {error}") from None
    elif count > 1:
        raise UserError(f"{run.id} is an evaluation, which takes one device, not {count}")


def begin(
    workspace: Workspace,
    run: Run,
    studies: list[str],
    attempt: Attempt,
    console: Console,
) -> "Devices | None":
    """Prepare a run's locked folder for an attempt, and record its provenance.

    Args:
        workspace: Holds the run's parents.
        run: The run to train.
        studies: The studies that it belongs to.
        attempt: The attempt.
        console: Shows warnings, and that a run is already complete.

    Returns:
        The devices to train on; None if the run is complete, or its final files were restored.

    Raises:
        UserError: The folder holds a run of another config, the data can't be read, or they differ
            from those of the run's start or of a run that it builds on.
        TryAgain: torch can't use GPUs that were leased.
    """
    from ofq.training.distributed import choose

    if attempt.folder.restore():
        console.print(f"{run.id} is already complete", highlight=False, soft_wrap=True)
        return None
    devices = choose(attempt.options.gpus)
    _check_leased(attempt, devices)
    facts = inputs.checked_data(workspace, run, studies)
    inputs.check_files(workspace, run, console)
    _forget_start_by_other_code(attempt, run)
    if not _goes_on(attempt):
        inputs.check_weights(workspace, run)
    _check_goes_on(attempt, facts)
    attempt.folder.open(describe(run))
    origin = {"inputs": inputs.hashes(workspace, run), "data": facts.record()}
    began = _began_with(attempt, origin, console)
    _record_attempt(workspace, run, studies, attempt, devices, began=began, origin=origin)
    _warn_of_unknown_code(attempt, console)
    _warn_of_new_tracker(workspace, run, attempt, console)
    return devices


def train(
    workspace: Workspace, run: Run, attempt: Attempt, console: Console, devices: "Devices"
) -> None:
    """Execute a run in its opened folder: train, or evaluate existing weights.

    Training resumes where an earlier attempt stopped.

    Args:
        workspace: Holds the run's parents.
        run: The run to train.
        attempt: The attempt.
        console: Shows progress.
        devices: The devices to train on.

    Raises:
        UserError: Something that the run needs is missing or invalid.
        RunFailed: Training can't reach its end.
        TryAgain: The attempt was interrupted.
    """
    from ofq.training.checkpoint import CheckpointStore
    from ofq.training.distributed import faults_told, take_part
    from ofq.training.weights import save_tensors, save_weights

    folder = attempt.folder
    _show_devices(run, console, devices)
    work = _train if isinstance(run.config, TrainedRun) else evaluate
    all_here = devices.count == 1 or are_started()
    leased = attempt.lease.descriptors
    with (
        nullcontext() if all_here else ranks(run.id, devices.count, leased, attempt.lost) as started
    ):

        def check() -> None:
            attempt.stop.check()
            if started is not None:
                started.check()

        group = take_part(devices, run.resources.threads, check)
        with faults_told():
            outcome = work(workspace, run, attempt, console, group)
        group.destroy()
    attempt.end("finished")
    result, facts = _result(run, outcome, attempt), inputs.recorded_data(folder)
    folder.finish(
        result,
        lambda path: save_weights(outcome.model, path, facts),
        outcome.correct,
        partial(save_tensors, outcome.history) if outcome.history else None,
    )
    if not attempt.options.keep:
        CheckpointStore(folder.path / CHECKPOINT, folder.guard).clear()
    console.print(f"finished {run.id}: {summary(outcome.metrics)}", highlight=False, soft_wrap=True)


def _check_leased(attempt: Attempt, devices: "Devices") -> None:
    """Refuse to train on the CPU where GPUs were leased that torch can't use."""
    import torch

    if attempt.lease.devices and devices.kind == "cpu" and torch.version.cuda:
        raise TryAgain(
            f"torch can't use the GPUs of {platform.node()} that were leased; "
            "`python -c 'import torch; torch.cuda.init()'` says why there"
        )


def _show_devices(run: Run, console: Console, devices: "Devices") -> None:
    """Print devices and split of the batch, unless it is one pass on one CPU."""
    training = training_of(run.config)
    if training is None:
        return
    parts = split(training.batch_size, devices.count, run.resources.device_batch)
    if devices.gpus or parts.devices * parts.passes > 1:
        console.print(f"{parts}, {devices}", highlight=False, soft_wrap=True)


def assist(workspace: Workspace, run: Run, gpus: int, stop: StopRequest) -> None:
    """Train as one of ranks 1 to N - 1, which write no record.

    Args:
        workspace: Holds the run's parents.
        run: The run to train.
        gpus: Number of GPUs that it trains on.
        stop: The stop request that the training loop checks.

    Raises:
        UserError: Something that the run needs is missing or invalid.
        RunFailed: Training can't reach its end.
        TryAgain: Training was interrupted, or rank 0 has ended.
    """
    from ofq.training.data.images import files_of
    from ofq.training.data.loading import workers_watched
    from ofq.training.distributed import choose, faults_told, take_part
    from ofq.training.trainer import Session

    group = take_part(choose(gpus), run.resources.threads, stop.check)
    files = files_of(workspace, run)
    with faults_told(), workers_watched():
        _trainer(workspace, run, Session(stop=stop, group=group), files).run()
    group.destroy()


def _goes_on(attempt: Attempt) -> bool:
    """Return whether an attempt resumes an earlier one."""
    if not attempt.folder.attempts():
        return False
    return bool(manifests(attempt.folder.path / CHECKPOINT) or attempt.folder.rows("noise"))


def _forget_start_by_other_code(attempt: Attempt, run: Run) -> None:
    """Remove the state before the first step, if another version of a user's module made it.

    Nothing is lost, and the run is then made by the present version alone.
    """
    saved = manifests(attempt.folder.path / CHECKPOINT)
    if [path.name for path in saved] != [f"{checkpoint_name(0)}.json"]:
        return
    if OwnCode().changed(made_with_of(attempt.folder, run)):
        attempt.folder.guard()
        for path in (saved[0], saved[0].with_suffix(".pt")):
            path.unlink(missing_ok=True)


def _check_goes_on(attempt: Attempt, facts: "DataFacts") -> None:
    """Refuse to resume with data other than those that the run began with."""
    reference = inputs.recorded_data(attempt.folder) if _goes_on(attempt) else None
    difference = facts.difference(reference) if reference else None
    if difference:
        raise UserError(
            f"{attempt.folder.path}: this run began with other data: {difference}; put those "
            "back, or move the folder away to begin anew"
        )


def _began_with(attempt: Attempt, origin: dict[str, Any], console: Console) -> dict[str, Any]:
    """Return the recorded inputs and data of a run: its current ones, or, resuming, its first."""
    if not _goes_on(attempt):
        return origin
    began = {key: attempt.folder.provenance().get(key, origin[key]) for key in origin}
    files = began["inputs"].items()
    for name in [name for name, digest in files if origin["inputs"].get(name) != digest]:
        text = f"{name} isn't what this run began with; continuing from its checkpoint"
        warn(attempt, console, text)
    return began


def _record_attempt(
    workspace: Workspace,
    run: Run,
    studies: list[str],
    attempt: Attempt,
    devices: "Devices",
    *,
    began: dict[str, Any],
    origin: dict[str, Any],
) -> None:
    """Record the start of an attempt and its provenance; its own origin only if that differs."""
    folder = attempt.folder
    resources = run.resources.model_dump(include={"threads", "compile", "loader"})
    facts = {**gather(workspace.root, run.config.modules), **devices.describe(), **resources}
    facts |= {"origin": origin} if origin != began else {}
    comparison = workspace.compare(run, devices.count)
    folder.write_json(
        "provenance.json",
        {
            **workspace.uses(run, studies),
            "recipe": comparison.payload() if comparison else None,
            **began,
            "attempts": [*folder.attempts(), facts],
        },
    )
    folder.event(
        "opened",
        commit=facts["commit"],
        host=facts["host"],
        slurm_job=facts["slurm"].get("SLURM_JOB_ID"),
        devices=devices.count,
    )


def _warn_of_unknown_code(attempt: Attempt, console: Console) -> None:
    """Warn if git can't read a checkout; having none is no reason to warn."""
    reason = attempt.folder.attempts()[-1]["git_reason"]
    if reason is not None and NO_CHECKOUT not in reason:
        warn(attempt, console, f"the record lacks this code's commit or its changes: {reason}")


def _warn_of_new_tracker(
    workspace: Workspace, run: Run, attempt: Attempt, console: Console
) -> None:
    """Warn if the oscillation of a CGA stage can't be counted on from its QAT stage's."""
    if isinstance(run.config, CgaRun) and inputs.tracker(workspace, run) is None:
        assert run.parent is not None
        text = (
            f"{run.parent.id} was recorded without its tracker's history: oscillation is counted "
            "from the start of this stage only"
        )
        warn(attempt, console, text)


def _train(
    workspace: Workspace, run: Run, attempt: Attempt, console: Console, group: "SingleProcess"
) -> Outcome:
    from ofq.training.checkpoint import CheckpointStore
    from ofq.training.data.images import files_of
    from ofq.training.data.loading import workers_watched
    from ofq.training.pace import Pace
    from ofq.training.trainer import Session

    assert isinstance(run.config, TrainedRun)
    shown = display(console, run.config.training.epochs)
    recorder = Recorder(attempt, shown, console)
    folder = attempt.folder
    checkpoints = CheckpointStore(
        folder.path / CHECKPOINT, folder.guard, recorder.warn, folder, inputs.recorded_data(folder)
    )
    pace = Pace(60 * workspace.site.checkpoint_minutes, attempt.options.deadline)
    files = files_of(workspace, run, recorder.unreadable)
    try:
        with workers_watched():
            session = Session(recorder, checkpoints, attempt.stop, pace, group)
            trainer = _trainer(workspace, run, session, files)
            metrics = trainer.run()
        recorder.taught(trainer)
        history = trainer.tracker.history() if trainer.tracker else None
        kept = history if isinstance(run.config, QatRun) else None  # no stage follows the others
        primary = trainer.objective.primary
        return Outcome(trainer.final_model(), metrics, primary, trainer.correct, kept)
    finally:
        shown.end()


def _trainer(
    workspace: Workspace, run: Run, session: "Session", files: "ImageSource | None"
) -> "Trainer":
    from ofq.training.build import Inputs, build

    assert isinstance(run.config, TrainedRun)
    return build(
        run.config,
        Inputs(
            inputs.weights(workspace, run.parent),
            inputs.weights(workspace, run.teacher),
            inputs.pretrained(workspace, run.config),
            inputs.teacher_logits(workspace, run),
            inputs.array_place(workspace, run.config),
            inputs.tracker(workspace, run),
        ),
        session,
        files=files,
        device_batch=run.resources.device_batch,
        compiled=run.resources.compile,
    )


def _result(run: Run, done: Outcome, attempt: Attempt) -> dict[str, Any]:
    totals = attempt.totals()
    dropped = {"epoch", "step", "time", "lr"}
    final = {key: value for key, value in done.metrics.items() if key not in dropped}
    steps = {"epochs": done.metrics["epoch"], "steps": done.metrics["step"]}
    return {"id": run.id, "primary": done.primary, **final, **steps, **totals, **_skipped(attempt)}


def _skipped(attempt: Attempt) -> dict[str, int]:
    """Return the number of unreadable images that were skipped; empty if none was."""
    events = attempt.folder.events()
    names = {event["image"] for event in events if event["event"] == "unreadable"}
    return {"unreadable_images": len(names)} if names else {}
