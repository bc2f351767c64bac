"""Durations of the parts of training, to decide when to save and when to stop."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Part = Literal["step", "evaluation", "save"]

_MARGIN = 1.5  # factor on a part's duration, since the next one may take longer
_MEMORY = 0.9  # factor on a part's longest duration at each new measurement


class Pace:
    """Measurement of steps, evaluations and saves by a monotonic clock.

    Args:
        save_every: Seconds between checkpoints.
        deadline: Time by which training must have ended, by ``time.monotonic``; None for no limit.

    Attributes:
        seconds: Duration of each part: the longest measured, with older ones decaying.
    """

    def __init__(self, save_every: float = math.inf, deadline: float | None = None) -> None:
        self.save_every = save_every
        self.deadline = math.inf if deadline is None else deadline
        self.seconds: dict[Part, float] = {"step": 0.0, "evaluation": 0.0, "save": 0.0}
        self._saved_at = time.monotonic()
        self._moved = False

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Measure the part that runs in the body of the ``with`` statement."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        self.seconds[part] = max(now - began, _MEMORY * self.seconds[part])
        if part == "save":
            self._saved_at = now
        else:
            self._moved = True

    def save_due(self) -> bool:
        """Return whether the next checkpoint is due."""
        return time.monotonic() - self._saved_at > self.save_every

    def postpone(self) -> None:
        """Postpone the next checkpoint, since this one couldn't be saved."""
        self._saved_at = time.monotonic()

    def fits(self, part: Part) -> bool:
        """Return whether a part and a save after it still fit into the time left.

        True until a step or evaluation is done, so that every attempt makes progress.
        """
        needed = _MARGIN * (self.seconds[part] + self.seconds["save"])
        return not self._moved or time.monotonic() + needed < self.deadline
