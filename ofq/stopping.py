"""Leaving in good order when the process is asked to stop, or when its time is up."""

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType

from ofq.errors import TryAgain

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that ask a trainer to leave."""

_RESERVE = 30.0  # seconds for what comes before and after this process in a job
_LARGEST_RESERVE = 0.25  # of a short limit
_LOOK = 0.5  # seconds between two looks at a parent


class Interrupted(TryAgain):
    """Training stopped on request, with its state saved."""


class StopRequest:
    """What others ask of the training loop, which looks at it between steps.

    Attributes:
        cause: Why to stop, once there is a reason: a signal's name.
        checkpoint: Whether a checkpoint is asked for; the loop takes it back when it has saved.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        self.checkpoint = False

    def listen(self) -> "StopRequest":
        """Let SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 set the cause, and do nothing else."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def check(self) -> None:
        """Raise :class:`Interrupted` if there is a cause."""
        if self.cause is not None:
            raise Interrupted(self.cause)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.cause = signal.Signals(number).name


def deadline(started: float, limit: float | None) -> float | None:
    """When to have left, for a job that is ended at its time limit.

    Args:
        started: When the job started, by ``time.monotonic``.
        limit: The limit in minutes; None for none.

    Returns:
        A time of the same clock, a little before the limit; None if there is no limit.
    """
    if limit is None:
        return None
    seconds = 60 * limit
    return started + seconds - min(_RESERVE, _LARGEST_RESERVE * seconds)


def passed(deadline: float | None) -> bool:
    """Whether a deadline has passed."""
    return deadline is not None and time.monotonic() > deadline


def end_with_parent(parent: int | None = None) -> None:
    """End this process within a second of its parent's end, however that ends.

    Reads nothing: a forked process would inherit the lock of what its parent is reading.

    Args:
        parent: The parent's process id; left out in a process that multiprocessing started.
    """
    starter = multiprocessing.parent_process()
    nearest = parent or os.getppid()  # the fork server, where there is one

    def watch() -> None:
        while os.getppid() == nearest and (starter is None or starter.is_alive()):
            time.sleep(_LOOK)
        os._exit(TryAgain.exit_code)

    threading.Thread(target=watch, daemon=True, name="parent").start()
