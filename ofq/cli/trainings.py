"""Commands that train, resume, save and check runs."""

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ofq.cli.common import RunId, StudyName, say
from ofq.config import Workspace
from ofq.config.places import expand_path
from ofq.console import printable
from ofq.errors import RunFailed, UserError
from ofq.hardware import are_started
from ofq.runs.progress import SteadyConsole
from ofq.starting import started
from ofq.stopping import Interrupted, StopRequest, deadline, end_with_parent

if TYPE_CHECKING:
    from ofq.monitor.doctor import Diagnosis

_PANEL = "Runs"
_STARTED = time.monotonic()
_POLL_INTERVAL = 0.5  # seconds
_LEVELS = {"ok": "green", "warning": "yellow", "problem": "bold red"}
app = typer.Typer()


@app.command(rich_help_panel=_PANEL)
def train(
    run_ids: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs' ids, as `ofq runs` lists them.")
    ],
    *,
    tracked: Annotated[
        bool, typer.Option("--track/--no-track", help="Mirror the run in MLflow while it trains.")
    ] = True,
    time_limit: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            min=0.01,
            help="The job's time limit; save the state and exit before it.",
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="If another trainer writes this run, wait until it exits."),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the last checkpoints of the finished run.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Retry a run that failed for numerical reasons.")
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="GPUs, or ranks without CUDA. Default: the recipe's `gpu`.",
        ),
    ] = None,
) -> None:
    """Train a run, or resume it where it was interrupted.

    The runs that it builds on must be complete, or be named before it: several runs are trained one
    after the other, in a process each, and share the start. If one doesn't end well, the next ones
    aren't trained, and the command exits as that one did.

    Only one trainer writes a run at a time; another one exits, or waits with --wait. As many GPUs
    as the recipe requests are leased from those in CUDA_VISIBLE_DEVICES, or else the machine's:
    concurrent runs never share one. On a signal (SIGTERM, SIGINT, SIGUSR1, SIGUSR2) or before the
    time limit it saves its state and exits.

    Exits with 0 when the run is complete; with 75 when it was interrupted, or another trainer has
    it, and the same command resumes it later; with 3 when it would fail again; with 2 for a
    mistake.
    """
    from ofq.runs import job as jobs
    from ofq.runs.attempt import Options, attempt, run_folder
    from ofq.runs.chain import fork_for_each
    from ofq.tracking.mirroring import await_mirror, start_mirror

    if are_started() and len(run_ids) > 1:
        raise UserError("torchrun and srun start one run at a time; name one")
    run_id = run_ids[0]
    if int(os.environ.get("RANK", "0")) > 0:  # started by torchrun or srun
        _assist(run_id, devices)
        return
    console = SteadyConsole()
    workspace = Workspace()
    found = {run_id: workspace.find(run_id) for run_id in run_ids}
    stop, end = StopRequest().listen(), deadline(_STARTED, time_limit)
    if len(found) > 1:
        run_id = fork_for_each(list(found), stop, end)
    run, homes = found[run_id]
    if run_folder(workspace, run).complete():
        say(f"{run.id} is already complete")
        return
    gpus = run.resources.gpu if devices is None else devices
    jobs.check(workspace, run, homes, gpus)
    options = Options(end, wait, keep, again, gpus)
    mirror = None
    try:
        with attempt(workspace, run, console, stop, options) as current:
            allocation = jobs.begin(workspace, run, homes, current, console)
            if allocation is None:
                return
            mirror = start_mirror(current.folder, run.id) if tracked else None
            started()
            jobs.train(workspace, run, current, console, allocation)
    finally:
        if mirror is not None:
            folder, uri = run_folder(workspace, run), workspace.tracking_uri
            with suppress(OSError):  # the attempt has reported a disk that is gone
                await_mirror(mirror, folder, run.id, uri, console, options.deadline)


@app.command(hidden=True)
def assist(
    run_id: RunId,
    devices: Annotated[int, typer.Option(help="As for `ofq train`.")],
    parent: Annotated[int, typer.Option(help="Process id of rank 0.")],
) -> None:
    """Run one rank above 0 of a multi-device run (`ofq train` starts these itself)."""
    end_with_parent(parent)
    _assist(run_id, devices)


def _assist(run_id: str, gpus: int | None) -> None:
    """Train as a rank above 0; errors common to all ranks are reported by rank 0 alone."""
    from ofq.runs import job as jobs
    from ofq.runs.attempt import run_folder

    workspace = Workspace()
    run, homes = workspace.find(run_id)
    if run_folder(workspace, run).complete():
        return
    stop = StopRequest().listen()
    gpus = run.resources.gpu if gpus is None else gpus
    jobs.check(workspace, run, homes, gpus)
    started()
    try:
        jobs.assist(workspace, run, gpus, stop)
    except (Interrupted, RunFailed) as error:
        raise SystemExit(error.exit_code) from None


@app.command(rich_help_panel=_PANEL)
def save(run_id: RunId) -> None:
    """Request a checkpoint now from a run that is being trained, here or on another host."""
    from ofq.runs.attempt import SAVE_REQUEST, run_folder

    workspace = Workspace()
    run, _ = workspace.find(run_id)
    folder = run_folder(workspace, run)
    request = folder.path / SAVE_REQUEST
    if folder.state() != "running":
        raise UserError(f"{run.id} isn't running, it is {folder.state()}")
    request.touch()
    console = Console()
    with console.status("waiting for the checkpoint"):
        while request.exists() and folder.state() == "running":
            time.sleep(_POLL_INTERVAL)
    if request.exists():
        request.unlink()
        raise UserError(f"{run.id} has ended in the meantime; it is {folder.state()}")
    say(f"saved {run.id}")


@app.command(rich_help_panel=_PANEL)
def retrain(
    study: StudyName,
    changed: Annotated[
        bool,
        typer.Option("--changed", help="Runs that were made by another version of your modules."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only list what would be moved.")
    ] = False,
) -> None:
    """Set runs of a study aside, with all that builds on them, so that the workflow repeats them.

    Their folders are moved to results/set_aside/TIME, with the logs of their jobs; nothing is
    removed. Runs of other studies that build on them are moved, too. While one of them is being
    written, nothing is moved. `snakemake STUDY` then trains them again.
    """
    from ofq.runs.own_code import changed_runs
    from ofq.runs.set_aside import set_aside, with_descendants

    if not changed:
        raise UserError("say which runs: --changed, those made by another version of your modules")
    workspace = Workspace()
    workspace.refuse_bundle("retrain")
    found = changed_runs(workspace, workspace.grid(study).runs())
    runs = with_descendants(workspace, found)
    place = set_aside(workspace, runs, dry_run)
    for name in runs:
        reason = ", ".join(found[name]) + " has changed" if name in found else "builds on them"
        say(f"{name}  ({reason})")
    if place is None:
        say(f"no run of {study} was made by another version of your modules")
    elif dry_run:
        say(f"{len(runs)} runs would be moved to {place}")
    else:
        say(f"moved {len(runs)} runs to {place}; snakemake --cores 2 {study} trains them again")


@app.command(rich_help_panel=_PANEL)
def doctor(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs' ids, or paths of run folders.")
    ],
) -> None:
    """Check run folders and suggest how to fix what is wrong; this changes nothing.

    It reads the whole folder: config, lock, events, provenance, tables, final files and checkpoints
    by their SHA-256, the runs that this one builds on, and leftovers of a killed trainer. A problem
    means that something is lost or blocks training; a warning resolves itself, or is only for
    information. Each comes with a remedy, as a command where there is one.

    Exits with 0 if all is sound, with 1 if there is a problem.
    """
    from ofq.monitor.doctor import examine

    workspace = Workspace()
    console = Console()
    diagnoses = [examine(workspace, expand_path(name, "RUN")) for name in runs]
    for diagnosis in diagnoses:
        _show(diagnosis, console)
    if not all(diagnosis.sound for diagnosis in diagnoses):
        raise typer.Exit(1)


def _show(diagnosis: "Diagnosis", console: Console) -> None:
    console.print(f"[bold]{escape(printable(diagnosis.name))}[/]", highlight=False, soft_wrap=True)
    for finding in diagnosis.findings:
        text = (
            f"  [{_LEVELS[finding.level]}]{finding.level:7}[/]  {escape(printable(finding.text))}"
        )
        console.print(text, highlight=False, soft_wrap=True)
        if finding.todo is not None:
            say(f"           → {printable(finding.todo)}")
