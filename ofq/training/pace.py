"""How long the parts of training take; so, when to save, and what still fits into the time left."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Part = Literal["step", "evaluation", "save"]

_MARGIN = 1.5  # on what a part took, since the next one may take longer
_MEMORY = 0.9  # of a part's longest time, from one time to the next


class Pace:
    """Measures steps, evaluations and saves, by a clock that doesn't jump.

    Args:
        save_every: Seconds between checkpoints.
        deadline: When to have left, by ``time.monotonic``; None for any time.

    Attributes:
        seconds: What each part takes: the longest of the last times, older ones counting less.
    """

    def __init__(self, save_every: float = math.inf, deadline: float | None = None) -> None:
        self.save_every = save_every
        self.deadline = math.inf if deadline is None else deadline
        self.seconds: dict[Part, float] = {"step": 0.0, "evaluation": 0.0, "save": 0.0}
        self._saved_at = time.monotonic()
        self._moved = False

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Measure a part that is done now."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        self.seconds[part] = max(now - began, _MEMORY * self.seconds[part])
        if part == "save":
            self._saved_at = now
        else:
            self._moved = True

    def save_due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.monotonic() - self._saved_at > self.save_every

    def postpone(self) -> None:
        """Let the next checkpoint be due later, since this one couldn't be saved."""
        self._saved_at = time.monotonic()

    def fits(self, part: Part) -> bool:
        """Whether a part and a save after it still fit into the time left.

        True until something was done, so that every attempt moves on.
        """
        needed = _MARGIN * (self.seconds[part] + self.seconds["save"])
        return not self._moved or time.monotonic() + needed < self.deadline
