"""Arguments and output shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ofq.config.places import expand_path
from ofq.console import printable_lines

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, as `ofq runs` lists it.")]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study: a file in config/studies, without .yaml.")
]


def say(text: str) -> None:
    """Print lines without wrapping, with control characters escaped."""
    Console().print(printable_lines(text), highlight=False, markup=False, soft_wrap=True)


def given_path(path: Path, source: str) -> Path:
    """Expand a path from the command line: shells leave the ~ in ``--out=~/x``.

    Args:
        path: The path.
        source: The option or argument, for the error.

    Raises:
        UserError: A variable isn't set, or a user isn't known.
    """
    return Path(expand_path(str(path), source))
