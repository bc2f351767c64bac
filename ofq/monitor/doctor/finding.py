"""Findings of checks."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        level: ``problem`` if data are lost or the run is blocked, ``warning`` if it is only worth
            knowing or resolves itself.
        text: The finding in words.
        todo: The remedy; a command wherever there is one.
    """

    level: Level
    text: str
    todo: str | None = None


def ok(text: str) -> Finding:
    """Return a finding that all is in order."""
    return Finding("ok", text)


def warning(text: str, todo: str | None = None) -> Finding:
    """Return a finding that is worth knowing, or resolves itself."""
    return Finding("warning", text, todo)


def problem(text: str, todo: str) -> Finding:
    """Return a finding of lost data, or of something that blocks the run."""
    return Finding("problem", text, todo)
