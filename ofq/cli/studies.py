"""Commands that list studies and runs, show their progress, and estimate their cost."""

from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ofq.cli.common import StudyName, say
from ofq.config import Workspace
from ofq.config.fields import State
from ofq.console import printable, printable_lines
from ofq.errors import UserError
from ofq.stopping import StopRequest

_PANEL = "Studies"
app = typer.Typer()


@app.command(rich_help_panel=_PANEL)
def studies() -> None:
    """List the studies under config/, with the size of their grids.

    For a study whose file is invalid, a line below the table says why.
    """
    workspace = Workspace()
    workspace.refuse_elsewhere()
    table = Table("study", "cells", "runs", "title", box=None)
    for name in workspace.study_names:
        with suppress(UserError):  # reported below
            grid = workspace.grid(name)
            counts = (str(len(grid.cells)), str(len(grid.runs())))
            table.add_row(name, *counts, escape(printable(workspace.study(name).title)))
    Console().print(table)
    for line in workspace.faults():
        say(printable(line))


@app.command(rich_help_panel=_PANEL)
def recipe(study: StudyName) -> None:
    """List the differences of a study's runs from the published recipe.

    They are for the devices that the study's recipe requests. Runs without a published recipe, such
    as those on digits, are excluded.
    """
    workspace = Workspace()
    runs = workspace.grid(study).runs().values()
    compared = [(run, match) for run in runs if (match := workspace.compare(run)) is not None]
    for run, match in compared:
        lines = [f"differs: {difference}" for difference in match.differences]
        lines += [f"always: {deviation}" for deviation in match.deviations]
        print(printable_lines("\n  ".join([f"{run.id} ({match.title})", *lines])))
    if not compared:
        say(f"no recipe was published for any of the {len(runs)} runs of {study}")


@app.command(rich_help_panel=_PANEL)
def runs(
    study: StudyName,
    state: Annotated[State | None, typer.Option(help="List only runs in this state.")] = None,
) -> None:
    """List a study's runs with their states, parents first.

    Outside a terminal it prints a line per run, id and state with a tab between; with `--state`,
    ids alone, for other commands: `ofq doctor $(ofq runs digits --state interrupted)`. `ofq status`
    summarizes them by cell.
    """
    from ofq.monitor.status.runs import StudyStatus
    from ofq.monitor.status.table import STYLES

    console = Console()
    progress = StudyStatus(Workspace(), study)
    states = {name: status.state for name, status in progress.read().items()}
    wanted = [name for name in states if state in (None, states[name])]
    if not console.is_terminal:
        lines = [name if state else f"{name}\t{states[name]}" for name in wanted]
        print("".join(f"{line}\n" for line in lines), end="")
        return
    table = Table("run", "state", box=None)
    for name in wanted:
        table.add_row(name, states[name], style=STYLES[states[name]])
    console.print(table)


@app.command(rich_help_panel=_PANEL)
def status(
    studies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="Studies. Default: those of the site."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print the status once, in full, and exit.")
    ] = False,
) -> None:
    """Show the progress of studies: runs that are done, running, interrupted, failed and waiting.

    There is one row per cell. It counts the cell's runs of all seeds and stages; a stage that
    several cells share is counted in one row. For running ones it shows their joint progress, the
    steps per second of one run, and when the last run ends. Failed runs are listed below, with the
    reason, the log and what to do.

    In a terminal the display updates until all is done or Ctrl-C; elsewhere it is a line per cell,
    once.
    """
    from ofq.monitor.status.lines import lines
    from ofq.monitor.status.runs import StudyStatus
    from ofq.monitor.status.table import Page, follow

    console = Console()
    workspace = Workspace()
    statuses = [StudyStatus(workspace, name) for name in studies or workspace.site.studies]
    if not console.is_terminal:
        for progress in statuses:
            print(printable_lines("\n".join(lines(progress))))
    elif once:
        console.print(Page(statuses, console).draw(fit=False))
    else:
        follow(Page(statuses, console), StopRequest().listen())


@app.command(rich_help_panel=_PANEL)
def check(
    studies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="Studies. Default: those of the site."),
    ] = None,
    elsewhere: Annotated[
        bool,
        typer.Option(
            "--elsewhere", help="Leave out whether data and files are there, as on a login node."
        ),
    ] = False,
) -> None:
    """Check all that studies' remaining runs need, before anything is trained.

    Models, quantizers, techniques and their options are constructed without memory for weights;
    pretrained weights, checkpoints and data must be where the config says. Each mistake is a line.
    What has passed is remembered in the results folder until config or code changes. `ofq plan` and
    the workflow do the same.

    Exits with 0 if nothing is wrong, with 2 otherwise.
    """
    from ofq.monitor.check.study import Remaining

    workspace = Workspace()
    remaining = Remaining(workspace, studies or workspace.site.studies)
    lines = [*remaining.faults, *remaining.mistakes()]
    lines += [] if elsewhere else remaining.missing()
    if lines:
        raise UserError("\n".join(lines))
    say(f"nothing stands in the way of {remaining.count} remaining runs")


@app.command(rich_help_panel=_PANEL)
def tune(
    study: StudyName,
    write: Annotated[
        bool, typer.Option("--write", help="Write the chosen values to the methods' files.")
    ] = False,
) -> None:
    """Choose options of methods by the runs of a study that tries their values (key `tune`).

    The value with the best mean over seeds is chosen, the smallest of equal ones. It is refused
    while runs are missing. With --write, the methods' files have the chosen values, and how they
    were chosen; writing again changes nothing.
    """
    from ofq.config.tuning import shown
    from ofq.report.tuning import choose, write_choice

    workspace = Workspace()
    choices = choose(workspace, study)
    table = Table("method", "values", "mean", "chosen", box=None)
    for choice in choices:
        for variant, mean in choice.tried:
            values = ", ".join(f"{o} {shown(v)}" for o, v in variant.values.items())
            chosen = "chosen" if variant == choice.best else ""
            table.add_row(choice.method, escape(values), f"{mean:.2f}", chosen)
    Console().print(table)
    if write:
        workspace.refuse_bundle("write methods")
        for choice in choices:
            path = write_choice(workspace, choice)
            say(f"{choice.method}: {f'written to {path}' if path else 'as it was'}")


@app.command(rich_help_panel=_PANEL)
def plan(
    study: StudyName,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="GPUs to plan for. Default: this machine's."),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="CPU cores for runs without GPU. Default: this machine's."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The GPU to plan for: a100, h100, rtx4090, … Default: this machine's.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First train each kind of run here for some seconds.")
    ] = False,
    write_runtime: Annotated[
        bool,
        typer.Option("--write-runtime", help="Write jobs' time limits to config/runtimes.yaml."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="MINUTES", min=5, help="With --write-runtime: the longest time limit of a job."
        ),
    ] = None,
) -> None:
    """Estimate the cost of a study before anything is submitted, and check it as `ofq check` does.

    It shows runs to do and done, the savings by shared stages, GPU-hours, and the time until all is
    done. Times are ranges: from finished runs, else from --measure (stored in the results folder),
    else assumed; the last column shows which. An assumed time of a GPU is within a factor of 3 for
    the one that --device names, and spans all known ones without it. On a cluster, measure on a
    node like those of the
    jobs: [cyan]srun --cpus-per-task=8 ofq plan STUDY --measure[/cyan]

    With --write-runtime the workflow requests time by these estimates instead of the recipe's. This
    re-runs nothing. A run that takes longer than --limit continues in further jobs.
    """
    from ofq.monitor.check.study import Remaining
    from ofq.monitor.devices import named
    from ofq.monitor.plan.limits import write
    from ofq.monitor.plan.plan import Machine, Planner
    from ofq.monitor.plan.show import show

    console = Console()
    if device and measure:
        raise UserError(f"--device {device}, --measure: measures this machine; give one of them")
    workspace, gpu = Workspace(), named(device) if device else None
    planner = Planner(workspace, study, gpu)
    remaining = Remaining(workspace, [] if workspace.is_bundle else [study])
    if mistakes := remaining.mistakes():
        raise UserError("\n".join(mistakes))
    if measure:
        from ofq.monitor.plan.calibration import measure as measure_runs

        with console.status("measuring"):
            measure_runs(workspace, planner.unmeasured(), console.print)
        planner = Planner(workspace, study)
    for warning in (*planner.warnings, *remaining.missing()):
        say(f"warning: {warning}")
    show(planner.plan(Machine.given(gpus, cores, planner.to_do())), console)
    if write_runtime:
        for line in write(workspace, planner, limit):
            say(line)
