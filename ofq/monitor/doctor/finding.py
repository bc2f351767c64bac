"""What a check finds."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        level: ``problem`` if something is lost or in the way, ``warning`` if it only deserves to
            be known or mends itself.
        text: What was found.
        todo: What to do about it; a command wherever there is one.
    """

    level: Level
    text: str
    todo: str | None = None


def ok(text: str) -> Finding:
    """Something is as it should be."""
    return Finding("ok", text)


def warning(text: str, todo: str | None = None) -> Finding:
    """Something deserves to be known."""
    return Finding("warning", text, todo)


def problem(text: str, todo: str) -> Finding:
    """Something is lost or in the way."""
    return Finding("problem", text, todo)
