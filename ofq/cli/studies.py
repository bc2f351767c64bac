"""What is there, how far it is and what it will cost."""

from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ofq.cli.common import StudyName, say
from ofq.config import Workspace
from ofq.console import printable, printable_lines
from ofq.errors import UserError
from ofq.runs.folder import State
from ofq.stopping import StopRequest

_PANEL = "Studies"
app = typer.Typer()


@app.command(rich_help_panel=_PANEL)
def studies() -> None:
    """List the studies under config/, with the size of their grids.

    A study whose file is wrong has a line below that says what is.
    """
    workspace = Workspace()
    table = Table("study", "cells", "runs", "title", box=None)
    for name in workspace.study_names:
        with suppress(UserError):  # told below
            grid = workspace.grid(name)
            counts = (str(len(grid.cells)), str(len(grid.runs())))
            table.add_row(name, *counts, escape(printable(workspace.study(name).title)))
    Console().print(table)
    for line in workspace.faults():
        say(printable(line))


@app.command(rich_help_panel=_PANEL)
def recipe(study: StudyName) -> None:
    """List what a study's runs differ in from the published recipe, as its recipe asks for devices.

    Runs for which nothing was published, such as those on digits, are left out.
    """
    workspace = Workspace()
    runs = workspace.grid(study).runs().values()
    compared = [(run, found) for run in runs if (found := workspace.compare(run)) is not None]
    for run, found in compared:
        lines = [f"differs: {difference}" for difference in found.differences]
        lines += [f"always: {deviation}" for deviation in found.deviations]
        print(printable_lines("\n  ".join([f"{run.id} ({found.title})", *lines])))
    if not compared:
        say(f"no recipe was published for any of the {len(runs)} runs of {study}")


@app.command(rich_help_panel=_PANEL)
def runs(
    study: StudyName,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
) -> None:
    """List a study's runs, parents first; in a terminal with the state that each is in.

    Elsewhere it prints one id per line, so that they can be handed on:
    `ofq doctor $(ofq runs digits --state interrupted)`. `ofq status` sums them up by cells.
    """
    from ofq.monitor.status.runs import StudyStatus
    from ofq.monitor.status.table import STYLES

    console = Console()
    watch = StudyStatus(Workspace(), study)
    if state is None and not console.is_terminal:
        print("\n".join(watch.runs))
        return
    states = {name: status.state for name, status in watch.read().items()}
    wanted = [name for name in states if state in (None, states[name])]
    if not console.is_terminal:
        print("".join(f"{name}\n" for name in wanted), end="")
        return
    table = Table("run", "state", box=None)
    for name in wanted:
        table.add_row(name, states[name], style=STYLES[states[name]])
    console.print(table)


@app.command(rich_help_panel=_PANEL)
def status(
    studies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="Studies; left out, the site's."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print it once, whole, and leave.")] = False,
) -> None:
    """Show how far studies are: what is done, running, interrupted, failed and waiting.

    One row per cell. It counts the cell's runs, all seeds and stages; a stage that several cells
    share is counted in one row. For running ones it shows how far they are together, the steps
    per second of one, and when the last of them ends. Below are the failed runs: why, where the
    log is, what to do.

    In a terminal this is live, until all is done or Ctrl-C; elsewhere it is a line per cell, once.
    """
    from ofq.monitor.status.lines import lines
    from ofq.monitor.status.runs import StudyStatus
    from ofq.monitor.status.table import Page, follow

    console = Console()
    workspace = Workspace()
    watches = [StudyStatus(workspace, name) for name in studies or workspace.site.studies]
    if not console.is_terminal:
        for watch in watches:
            print(printable_lines("\n".join(lines(watch))))
    elif once:
        console.print(Page(watches, console).draw(fit=False))
    else:
        follow(Page(watches, console), StopRequest().listen())


@app.command(rich_help_panel=_PANEL)
def plan(
    study: StudyName,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="GPUs to plan for; left out, this machine's."),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="CPU cores for runs without GPU; left out, this machine's."
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First train each kind of run for some seconds here.")
    ] = False,
    write_runtime: Annotated[
        bool,
        typer.Option("--write-runtime", help="Write jobs' time limits to config/runtimes.yaml."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="MINUTES", min=5, help="With --write-runtime: the most that a job may ask for."
        ),
    ] = None,
) -> None:
    """Say what a study will cost, before anything is submitted.

    Runs to do and done, what shared stages save, GPU-hours, and the time until all is done.
    Times are ranges: from finished runs, else from --measure (kept in the results folder), else
    assumed, which the last column says. On a cluster, measure on a node like those of the jobs:
    [cyan]srun --cpus-per-task=8 ofq plan STUDY --measure[/cyan]

    With --write-runtime the workflow asks for time by these estimates in place of the recipe's.
    That re-runs nothing. A run that takes longer than --limit goes on in further jobs.
    """
    from ofq.monitor.plan.limits import write
    from ofq.monitor.plan.plan import Machine, Planner
    from ofq.monitor.plan.show import show

    console = Console()
    workspace = Workspace()
    planner = Planner(workspace, study)
    if measure:
        from ofq.monitor.plan.calibration import measure as measure_runs

        with console.status("measuring"):
            measure_runs(workspace, planner.unmeasured(), console.print)
        planner = Planner(workspace, study)
    for warning in planner.warnings:
        say(f"warning: {warning}")
    show(planner.plan(Machine.given(gpus, cores, planner.to_do())), console)
    if write_runtime:
        for line in write(workspace, planner, limit):
            say(line)
