"""Graceful shutdown on signals and time limits."""

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType

from ofq.errors import TryAgain

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that make a trainer save its state and stop."""

_RESERVE = 30.0  # seconds, for a job's commands before and after this process
_LARGEST_RESERVE = 0.25  # share of a short limit
_POLL_INTERVAL = 0.5  # seconds


class Interrupted(TryAgain):
    """Raised when training stops on request, with its state saved."""


class StopRequest:
    """Requests to the training loop, which checks them between steps.

    Attributes:
        cause: Why to stop: a signal's name; None to continue.
        checkpoint: Whether a checkpoint is requested; the loop clears it once it has saved.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        self.checkpoint = False

    def listen(self) -> "StopRequest":
        """Let SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 only set the cause; return this object."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def check(self) -> None:
        """Raise :class:`Interrupted` if there is a cause."""
        if self.cause is not None:
            raise Interrupted(self.cause)

    def follow(self, process: int) -> None:
        """Request a stop, too, when the parent of this process has exited.

        Args:
            process: The parent's process id.
        """

        def poll() -> None:
            while os.getppid() == process:
                time.sleep(_POLL_INTERVAL)
            self.cause = self.cause or "the end of its parent process"

        threading.Thread(target=poll, daemon=True, name="parent").start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.cause = signal.Signals(number).name


def deadline(started: float, limit: float | None) -> float | None:
    """Return the time by which a job with a time limit should have exited.

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
    """Return whether a deadline has passed."""
    return deadline is not None and time.monotonic() > deadline


def end_with_parent(parent: int | None = None) -> None:
    """Exit this process within a second of its parent's exit, whatever the cause of that.

    Reads no stream: a forked process would inherit the lock of one that its parent is reading.

    Args:
        parent: The parent's process id; None in a process that multiprocessing started.
    """
    starter = multiprocessing.parent_process()
    nearest = parent or os.getppid()  # the fork server, where there is one

    def poll() -> None:
        while os.getppid() == nearest and (starter is None or starter.is_alive()):
            time.sleep(_POLL_INTERVAL)
        os._exit(TryAgain.exit_code)

    threading.Thread(target=poll, daemon=True, name="parent").start()
