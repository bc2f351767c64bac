"""Mirror process beside a trainer: started by it, following its run, awaited at its end."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Console

from ofq.console import printable
from ofq.errors import UserError
from ofq.runs.folder import RunFolder
from ofq.tracking.sent import lacking

if TYPE_CHECKING:  # a trainer doesn't load MLflow
    from ofq.tracking.mirror import Mirror

WAIT = 30.0
"""Longest time in seconds that a trainer waits for its mirror."""

_LOG = "mirror.log"
_POLL = 0.5  # seconds between polls of a run folder
_PAUSE = 5.0  # seconds between two updates of the server
_PATIENCE = 15.0  # seconds of failure after which an ended run's mirror gives up
_LONGEST = 60.0  # longest pause in seconds between tries
_LIMIT = 600.0  # seconds that a mirror may outlive its run

_log = logging.getLogger(__name__)


def start_mirror(folder: RunFolder, run_id: str) -> "subprocess.Popen[bytes] | None":
    """Start mirroring a run in a process and session of its own, apart from the trainer's signals.

    To be called while the run folder's lock is held.

    Args:
        folder: The run's folder.
        run_id: The run's id.

    Returns:
        The process; None if it couldn't be started, which doesn't prevent training.
    """
    try:
        with (folder.path / _LOG).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "ofq", "track", "follow", run_id],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        _log.warning("no mirror (%s); `ofq track sync %s` makes up for it", error, run_id)
        return None


def await_mirror(
    process: "subprocess.Popen[bytes]",
    folder: RunFolder,
    run_id: str,
    uri: str,
    console: Console,
    deadline: float | None = None,
) -> None:
    """Wait a limited time for a run's mirror, then print what MLflow lacks.

    To be called when the run has ended and the folder's lock is free again: while it is held, the
    run counts as running, and the mirror continues.

    Args:
        process: The process that :func:`start_mirror` returned.
        folder: The run's folder.
        run_id: The run's id.
        uri: The tracking URI.
        console: Shows what is missing.
        deadline: Time by which to return, by ``time.monotonic``.
    """
    left = WAIT if deadline is None else deadline - time.monotonic()
    with suppress(subprocess.TimeoutExpired):  # it continues by itself
        process.wait(max(0.0, min(WAIT, left)))
    missing = lacking(folder, uri)
    if missing:
        text = f"MLflow lacks {missing} of {run_id}; `ofq track sync {run_id}` sends them"
        console.print(text, highlight=False, soft_wrap=True)


def follow(mirror: "Mirror", folder: RunFolder) -> bool:
    """Mirror a run while it trains, and once more when it has ended.

    Follows one attempt, since the next one starts a mirror of its own.

    Args:
        mirror: The mirror.
        folder: The run's folder.

    Returns:
        Whether all of it was mirrored; gives up on a failing store soon after the run's end.
    """
    attempt = _attempt(folder)
    tries = _Tries(lambda: mirror.sync(folder))
    previous: list[int] = []
    while not _ended(folder, attempt):
        current = _changed(folder)
        if current != previous and tries.due() and tries.work():
            previous = current
        time.sleep(_POLL)
    while not tries.work():
        if tries.failing() > _PATIENCE:
            _log.warning("gave up: MLflow lacks %s", lacking(folder, mirror.uri))
            return False
        time.sleep(_POLL)
    return True


def leave_with(folder: RunFolder, limit: float = _LIMIT) -> None:
    """Start a thread that ends this process some time after the end of its run.

    A store may accept a connection and never answer; no timeout of a library covers every case.

    Args:
        folder: The run's folder.
        limit: Seconds that it may continue after the run's end.
    """
    attempt = _attempt(folder)

    def watch() -> None:
        while not _ended(folder, attempt):
            time.sleep(_POLL)
        time.sleep(limit)
        _log.warning("gave up: the tracking server holds this process up")
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="limit").start()


class _Tries:
    """Retries of an action that a server may refuse, with growing pauses while it fails.

    Args:
        action: The action.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._pause = _POLL
        self._next = 0.0
        self._failing_since: float | None = None

    def due(self) -> bool:
        """Return whether it is time for another try."""
        return time.monotonic() >= self._next

    def failing(self) -> float:
        """Return the seconds since the first of the current failures; 0 if there is none."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    def work(self) -> bool:
        """Try, and return whether it worked; log only the start and end of a row of failures."""
        began = time.monotonic()
        try:
            self._action()
        except Exception as error:  # MLflow lets through what any of its libraries raises
            if self._failing_since is None:
                self._failing_since, self._pause = began, _POLL
                _log.warning("will try again: %s", reason(error))
            self._pause = min(2 * self._pause, _LONGEST)
            self._next = time.monotonic() + self._pause
            return False
        if self._failing_since is not None:
            _log.warning("works again, after %.0f s", self.failing())
        self._failing_since, self._next = None, time.monotonic() + _PAUSE
        return True


def reason(error: Exception) -> str:
    """Return an error in one line."""
    kind = "UserError" if isinstance(error, UserError) else type(error).__name__
    return printable(" ".join(f"{kind}: {error}".split()))[:500]


def _attempt(folder: RunFolder) -> int:
    return sum(entry["event"] == "opened" for entry in folder.events())


def _ended(folder: RunFolder, attempt: int) -> bool:
    return folder.state() != "running" or _attempt(folder) != attempt


def _changed(folder: RunFolder) -> list[int]:
    paths = [folder.path / name for name in ("metrics.jsonl", "events.jsonl")]
    return [path.stat().st_mtime_ns for path in paths if path.exists()]
