"""Arguments and output that several commands have in common."""

from typing import Annotated

import typer
from rich.console import Console

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, as `ofq runs` lists it.")]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study: a file in config/studies, without .yaml.")
]


def say(text: str) -> None:
    """Print a line as it is, at any width."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
