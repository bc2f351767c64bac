"""Runs: trained, resumed, saved and checked."""

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ofq.cli.common import RunId, say
from ofq.config import Workspace
from ofq.config.places import expand_path
from ofq.console import printable
from ofq.errors import RunFailed, UserError
from ofq.runs.progress import SteadyConsole
from ofq.stopping import Interrupted, StopRequest, deadline, end_with_parent

if TYPE_CHECKING:
    from ofq.monitor.doctor import Diagnosis

_PANEL = "Runs"
_STARTED = time.monotonic()
_LOOK = 0.5  # seconds between two looks at a request
_LEVELS = {"ok": "green", "warning": "yellow", "problem": "bold red"}
app = typer.Typer()


@app.command(rich_help_panel=_PANEL)
def train(
    run_id: RunId,
    tracked: Annotated[
        bool, typer.Option("--track/--no-track", help="Mirror the run in MLflow while it trains.")
    ] = True,
    time_limit: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", min=0.01, help="When the job will be ended: save and leave before."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="If another trainer writes this run, wait for it.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the last checkpoints of the finished run.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Try once more what failed by its numbers.")
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="GPUs, or processes without CUDA; left out, the recipe's `gpu`.",
        ),
    ] = None,
) -> None:
    """Train one run, or resume it where it was interrupted.

    The runs that it builds on must be complete. One trainer writes a run at a time; another one
    leaves, or waits with --wait. As many GPUs as the recipe asks for are leased from those in
    CUDA_VISIBLE_DEVICES, or else the machine's: runs at the same time never share one. A signal
    (SIGTERM, SIGINT, SIGUSR1, SIGUSR2) or the time limit makes it save its state and leave.

    Exits with 0 when the run is complete; with 75 when it was interrupted, or another trainer has
    it: the same command goes on later; with 3 when it would fail again; with 2 for a mistake.
    """
    from ofq.runs import job as jobs
    from ofq.runs.attempt import Options, attempt, run_folder
    from ofq.tracking.mirroring import await_mirror, start_mirror

    if int(os.environ.get("RANK", "0")) > 0:  # started by torchrun or srun
        _assist(run_id, devices)
        return
    console = SteadyConsole()
    workspace = Workspace()
    run, homes = workspace.find(run_id)
    if run_folder(workspace, run).complete():
        say(f"{run.id} is already complete")
        return
    stop = StopRequest().listen()
    gpus = run.resources.gpu if devices is None else devices
    jobs.check(workspace, run, homes, gpus)
    options = Options(deadline(_STARTED, time_limit), wait, keep, again, gpus)
    mirror = None
    try:
        with attempt(workspace, run, console, stop, options) as this:
            found = jobs.begin(workspace, run, homes, this, console)
            if found is None:
                return
            mirror = start_mirror(this.folder, run.id) if tracked else None
            jobs.train(workspace, run, this, console, found)
    finally:
        if mirror is not None:
            folder, uri = run_folder(workspace, run), workspace.tracking_uri
            with suppress(OSError):  # of a disk that is gone the attempt has told
                await_mirror(mirror, folder, run.id, uri, console, options.deadline)


@app.command(hidden=True)
def assist(
    run_id: RunId,
    devices: Annotated[int, typer.Option(help="As of `ofq train`.")],
    parent: Annotated[int, typer.Option(help="The first process's id.")],
) -> None:
    """Be one of a run's further ranks (`ofq train` starts them by itself)."""
    end_with_parent(parent)
    _assist(run_id, devices)


def _assist(run_id: str, gpus: int | None) -> None:
    """Train along; what all processes end by, the first one says."""
    from ofq.runs import job as jobs
    from ofq.runs.attempt import run_folder

    workspace = Workspace()
    run, homes = workspace.find(run_id)
    if run_folder(workspace, run).complete():
        return
    stop = StopRequest().listen()
    gpus = run.resources.gpu if gpus is None else gpus
    jobs.check(workspace, run, homes, gpus)
    try:
        jobs.assist(workspace, run, gpus, stop)
    except (Interrupted, RunFailed) as told:
        raise SystemExit(told.exit_code) from None


@app.command(rich_help_panel=_PANEL)
def save(run_id: RunId) -> None:
    """Ask a run that is being trained, here or on another host, for a checkpoint now."""
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
            time.sleep(_LOOK)
    if request.exists():
        request.unlink()
        raise UserError(f"{run.id} has ended in the meantime; it is {folder.state()}")
    say(f"saved {run.id}")


@app.command(rich_help_panel=_PANEL)
def doctor(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs' ids, or paths of run folders.")
    ],
) -> None:
    """Check run folders, and say what to do about what is wrong; changes nothing.

    It reads all of a folder: config, lock, events, provenance, tables, final files and
    checkpoints by their SHA-256, the runs that this one builds on, and what a killed trainer left.
    A problem means that something is lost or in the way; a warning mends itself, or only deserves
    to be known. Each comes with what to do, as a command wherever there is one.

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
