"""Leaving in good order when the process is asked to stop."""

import signal
from types import FrameType

from ofq.errors import TryAgain

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(TryAgain):
    """Training stopped on request, with its state saved."""


class StopRequest:
    """A flag that signals set and the training loop looks at between steps.

    Attributes:
        cause: The signal's name, once one came.
    """

    def __init__(self) -> None:
        self.cause: str | None = None

    def listen(self) -> "StopRequest":
        """Let SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 set the flag, and do nothing else."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.cause = signal.Signals(number).name
