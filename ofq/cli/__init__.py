"""The ``ofq`` command, whose subcommands call the package."""

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from ofq import __version__
from ofq.cli import data, listing, models, reports, studies, track, trainings
from ofq.config import Workspace
from ofq.console import printable_lines, show_anywhere
from ofq.errors import RunFailed, TryAgain, UserError
from ofq.redact import redacted_output
from ofq.runs.progress import SteadyConsole

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Reproduce, ablate and extend [bold]Oscillation-free Quantization[/bold] for low-bit "
    "vision transformers.\n\nRun it in a checkout, where [cyan]config/[/cyan] defines studies. "
    "[cyan]snakemake --cores 2 STUDY[/cyan] runs a whole study; the commands here are its steps.",
    epilog="Examples:  [cyan]ofq status digits[/cyan]   [cyan]ofq train RUN[/cyan]   "
    "[cyan]ofq doctor RUN[/cyan]   [cyan]ofq report digits[/cyan]",
)
for commands in (studies, listing, trainings, reports, models):
    app.add_typer(commands.app)
app.add_typer(data.app, name="data", rich_help_panel="Studies")
app.add_typer(track.app, name="track", rich_help_panel="Runs")


def _flow(commands: typer.Typer) -> None:
    """Join the lines of each paragraph of help, so that it wraps to the terminal's width."""
    for command in commands.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)


for commands in (studies, listing, data, trainings, reports, models, track):
    _flow(commands.app)


def _version(requested: bool) -> None:
    if requested:
        print(f"ofq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; report expected errors as one message, without a stack trace.

    Standard output and error are set up here for all commands: credentials are redacted, and
    characters that a terminal can't show are replaced.
    """
    show_anywhere()
    with redacted_output():
        _run()


def _run() -> None:
    try:
        here = Path.cwd()
    except FileNotFoundError:
        _fail("the current folder doesn't exist any more; change to a checkout")
    if Workspace().is_bundle:  # `python -m ofq` must not import modules from it
        sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    try:
        app()
    except (UserError, RunFailed) as error:
        _fail(str(error), error.exit_code)
    except TryAgain as reason:
        console = SteadyConsole(stderr=True)
        console.print(printable_lines(reason), highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(reason.exit_code) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a folder without permission
        _fail(f"{error.filename or 'system'}: {error.strerror or error}")


def _fail(message: str, code: int = UserError.exit_code) -> NoReturn:
    console = SteadyConsole(stderr=True)
    text = escape(printable_lines(message))
    console.print(f"[bold red]error:[/] {text}", highlight=False, soft_wrap=True)
    raise SystemExit(code) from None
