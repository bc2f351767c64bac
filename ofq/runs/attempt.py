"""One attempt at a run: it holds the lock and the GPUs, and records how it ended."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ofq.config import Run, Workspace
from ofq.errors import RunFailed, TryAgain, UserError
from ofq.runs.folder import RunFolder
from ofq.runs.gpu_leases import Lease, lease
from ofq.runs.lock import Held, LockLost, RunLock
from ofq.runs.provenance import code_sha256
from ofq.stopping import Interrupted, StopRequest, passed

CHECKPOINT = "checkpoint"
SAVE_REQUEST = "save-requested"
"""Name of the file that requests a checkpoint of a running attempt, from any host."""

_ADVICE = (
    "Change its recipe or method, which makes a new run; or `ofq train {} --again` tries once more "
    "from the last good checkpoint"
)
ENDINGS = ("interrupted", "lost", "failed", "finished")


@dataclass(frozen=True)
class Options:
    """Options of an attempt.

    Attributes:
        deadline: Time by which the attempt must have ended, by ``time.monotonic``.
        wait: Whether to wait if another trainer writes the run folder.
        keep: Whether to keep checkpoints when the run has finished.
        again: Whether to retry a run that is known to fail.
        gpus: Number of this machine's GPUs to lease.
    """

    deadline: float | None = None
    wait: bool = False
    keep: bool = False
    again: bool = False
    gpus: int = 0


class Attempt:
    """One attempt in progress.

    Args:
        folder: The run's folder, locked.
        stop: The stop request that the training loop checks.
        options: Its options.

    Attributes:
        lease: The lease of its GPUs.
    """

    def __init__(self, folder: RunFolder, stop: StopRequest, options: Options) -> None:
        self.folder = folder
        self.stop = stop
        self.options = options
        self.lease = Lease()
        self._began = time.monotonic()
        self._recorded = 0.0  # seconds that an ending on record counts
        self._progress: dict[str, Any] = {}
        self._step = self._first = 0

    def start(self) -> None:
        """Start the clock of the attempt; time spent waiting before is not counted."""
        self._began = time.monotonic()

    def begin(self, step: int, total: int) -> None:
        """Note the step at which training starts, and the total."""
        self._step = self._first = step
        self._progress = {"total": total, "began": time.monotonic()}

    def step(self, step: int) -> None:
        """Note the current step; writes no file."""
        self._step = step

    def beat(self) -> None:
        """Write ``progress.json`` and check for a checkpoint request; called at each heartbeat."""
        if (self.folder.path / SAVE_REQUEST).exists():
            self.stop.checkpoint = True
        if self._progress:
            elapsed = time.monotonic() - self._progress["began"]
            done = self._step - self._first
            self.folder.write_json(
                "progress.json",
                {
                    "step": self._step,
                    "total": self._progress["total"],
                    "seconds_per_step": elapsed / done if done else None,
                },
            )

    def saved(self) -> None:
        """Remove the checkpoint request, which has been served."""
        (self.folder.path / SAVE_REQUEST).unlink(missing_ok=True)

    def note(self, kind: str, cause: str) -> None:
        """Record an event; ignore a failure to write it."""
        with suppress(OSError):
            self.folder.event(kind, cause=cause)

    def clear(self) -> None:
        """Remove files that matter only during training."""
        for name in ("progress.json", SAVE_REQUEST):
            (self.folder.path / name).unlink(missing_ok=True)

    def end(self, ending: str, **facts: str) -> None:
        """Record the end of the attempt, with the seconds that no earlier ending has counted.

        An attempt has two endings where writing the final files failed after the first.
        """
        seconds = time.monotonic() - self._began - self._recorded
        self.folder.event(ending, **facts, seconds=round(seconds, 3))
        self._recorded += seconds

    def lost(self, cause: str) -> None:
        """Record that the attempt was interrupted, because another rank was lost."""
        self.end("interrupted", cause=cause)

    def totals(self) -> dict[str, Any]:
        """Return seconds, device hours and number of all attempts, this one included."""
        seconds = device_seconds = 0.0
        devices = attempts = 0
        events = self.folder.events()
        for event in events:
            if event["event"] == "opened":
                devices, attempts = event.get("devices", 0), attempts + 1
            elif event["event"] in ENDINGS:
                seconds += event.get("seconds", 0.0)
                device_seconds += event.get("seconds", 0.0) * devices
        return {
            "seconds": round(seconds, 1),
            "device_hours": round(device_seconds / 3600, 4),
            "attempts": attempts,
        }


def run_folder(workspace: Workspace, run: Run) -> RunFolder:
    """Return the folder of a run."""
    return RunFolder(workspace.results / "runs" / run.id)


@contextmanager
def attempt(
    workspace: Workspace, run: Run, console: Console, stop: StopRequest, options: Options
) -> Iterator[Attempt]:
    """Hold a run's folder and its GPUs, and record how the attempt ended.

    The folder is locked first, so that no GPU is held while another trainer writes it.

    Raises:
        UserError: The folder can't be written, or the machine has too few GPUs.
        LockHeld: Another trainer writes it.
        NoDevice: The GPUs were leased to others until the attempt had to end.
        RunFailed: The run failed before, with the same code.
        TryAgain: The attempt was interrupted, by a request or by a fault of its environment.
    """
    folder = run_folder(workspace, run)
    attempt = Attempt(folder, stop, options)
    lock = RunLock(folder.path, attempt.beat, lambda: setattr(stop, "cause", "loss of its lock"))
    try:
        folder.make()
        dead = lock.acquire(_patience(options, stop, console))
    except OSError as error:
        raise _no_fault_of_the_run(error, folder, run) from None
    folder.guard = lock.check
    try:
        if dead is not None:
            _note_death(folder, dead)
        if not options.again:
            _refuse_hopeless(folder, run)
        if not folder.complete():
            attempt.lease = _lease(run, stop, options, console)
        attempt.start()
        with _recorded(attempt, run):
            yield attempt
    except OSError as error:
        raise _no_fault_of_the_run(error, folder, run) from None
    finally:
        with suppress(OSError):  # an unreachable disk must not hide the original error
            if _is_complete(folder):
                lock.remove()
                attempt.clear()
            else:
                lock.release()


def _is_complete(folder: RunFolder) -> bool:
    try:
        return folder.complete()
    except UserError:  # damaged: the attempt has reported it
        return False


def _patience(options: Options, stop: StopRequest, console: Console) -> Callable[[Held], bool]:
    """Return a function that decides whether to wait for another trainer; it names that once."""
    announced: list[str] = []

    def waits(held: Held) -> bool:
        if not options.wait or stop.cause is not None or passed(options.deadline):
            return False
        if not announced:
            announced.append(str(held))
            console.print(f"waiting for {held}, which trains this run", highlight=False)
        return True

    return waits


def _lease(run: Run, stop: StopRequest, options: Options, console: Console) -> Lease:
    def cause() -> str | None:
        return stop.cause or ("the time limit" if passed(options.deadline) else None)

    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return lease(options.gpus, run.id, cause, tell)


def _note_death(folder: RunFolder, dead: Held) -> None:
    """Record the end of an attempt that died without recording it."""
    events = folder.events()
    if events and events[-1]["event"] not in ENDINGS:
        opened = [event["time"] for event in events if event["event"] == "opened"]
        lasted = max(0.0, dead.beat - opened[-1]) if opened else 0.0
        cause = f"{dead} ended without a word"
        folder.event("lost", cause=cause, last_beat=dead.beat, seconds=round(lasted, 3))


def _refuse_hopeless(folder: RunFolder, run: Run) -> None:
    """Refuse a run whose numbers made it fail, unless code that decides them has changed."""
    events = folder.events()
    last = events[-1] if events else {}
    if last.get("event") == "failed" and last.get("code") == code_sha256(run.config.modules):
        raise RunFailed(
            f"{run.id} failed before, with this same code: {last.get('cause')}. "
            + _ADVICE.format(run.id)
        )


@contextmanager
def _recorded(attempt: Attempt, run: Run) -> Iterator[None]:
    """Record the end of an attempt as an event, and re-raise its cause with advice."""

    def ended(ending: str, cause: str, **facts: str) -> None:
        with suppress(OSError):  # the next attempt then records the end from the lock
            attempt.end(ending, cause=cause, **facts)

    try:
        yield
    except LockLost:
        raise
    except Interrupted as request:
        ended("interrupted", str(request))
        message = f"stopped by {request}; `ofq train {run.id}` goes on from here"
        raise Interrupted(message) from None
    except TryAgain as reason:
        ended("interrupted", str(reason))
        raise TryAgain(f"{reason}; `ofq train {run.id}` goes on from the last checkpoint") from None
    except OSError as error:
        ended("interrupted", error.strerror or str(error))
        raise _no_fault_of_the_run(error, attempt.folder, run) from None
    except RunFailed as error:
        ended("failed", str(error), code=code_sha256(run.config.modules))
        raise RunFailed(f"{run.id} failed: {error}. {_ADVICE.format(run.id)}") from None
    except Exception as error:
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        ended("failed", cause)
        raise


def _no_fault_of_the_run(error: OSError, folder: RunFolder, run: Run) -> TryAgain:
    """Return the error for a full disk or an unreachable file system."""
    return TryAgain(
        f"{error.filename or folder.path}: {error.strerror or error}; mend that, and "
        f"`ofq train {run.id}` goes on from the last checkpoint"
    )
