"""One attempt at a run: its lock, its record of what happened, and its way out."""

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
"""A file by which a running attempt is asked for a checkpoint, from any host."""

_ADVICE = (
    "Change its recipe or method, which makes a new run; or `ofq train {} --again` tries once more "
    "from the last good checkpoint"
)
ENDINGS = ("interrupted", "lost", "failed", "finished")


@dataclass(frozen=True)
class Options:
    """How an attempt behaves.

    Attributes:
        deadline: When to have left, by ``time.monotonic``.
        wait: Whether to wait for another trainer that writes the run folder.
        keep: Whether checkpoints stay when the run has finished.
        again: Whether to try once more what is known to fail.
        gpus: Number of GPUs to lease from those of this machine.
    """

    deadline: float | None = None
    wait: bool = False
    keep: bool = False
    again: bool = False
    gpus: int = 0


class Attempt:
    """An attempt under way.

    Args:
        folder: The run's folder, locked.
        stop: What the training loop looks at.
        options: How it behaves.

    Attributes:
        lease: Its GPUs.
    """

    def __init__(self, folder: RunFolder, stop: StopRequest, options: Options) -> None:
        self.folder = folder
        self.stop = stop
        self.options = options
        self.lease = Lease()
        self._began = time.monotonic()
        self._told = 0.0  # seconds of it that an ending on record tells of
        self._progress: dict[str, Any] = {}
        self._step = self._first = 0

    def start(self) -> None:
        """Let its time count from here: what came before was waiting."""
        self._began = time.monotonic()

    def begin(self, step: int, total: int) -> None:
        """Note where training starts."""
        self._step = self._first = step
        self._progress = {"total": total, "began": time.monotonic()}

    def step(self, step: int) -> None:
        """Note how far training is; costs nothing."""
        self._step = step

    def beat(self) -> None:
        """What the lock's heartbeat does beside: show progress, look for a request to save."""
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
        """Answer a request to save."""
        (self.folder.path / SAVE_REQUEST).unlink(missing_ok=True)

    def note(self, kind: str, cause: str) -> None:
        """Record an event, unless that is what fails."""
        with suppress(OSError):
            self.folder.event(kind, cause=cause)

    def clear(self) -> None:
        """Remove what only matters while training."""
        for name in ("progress.json", SAVE_REQUEST):
            (self.folder.path / name).unlink(missing_ok=True)

    def end(self, ending: str, **facts: str) -> None:
        """Record that the attempt ends here, with the seconds that no earlier ending tells of.

        There are two where the final files couldn't be written after all.
        """
        seconds = time.monotonic() - self._began - self._told
        self.folder.event(ending, **facts, seconds=round(seconds, 3))
        self._told += seconds

    def lost(self, cause: str) -> None:
        """Note that the attempt ends here, since another of the run's processes was lost."""
        self.end("interrupted", cause=cause)

    def totals(self) -> dict[str, Any]:
        """Time and devices over all attempts, this one included."""
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
    """The folder of a run."""
    return RunFolder(workspace.results / "runs" / run.id)


@contextmanager
def attempt(
    workspace: Workspace, run: Run, console: Console, stop: StopRequest, options: Options
) -> Iterator[Attempt]:
    """Hold a run's folder and its GPUs, and record how the attempt ended.

    The folder comes first: no GPU is held while another trainer writes it.

    Raises:
        UserError: The folder can't be written, or there are too few GPUs.
        LockHeld: Another trainer writes it.
        NoDevice: The GPUs were leased to others until it had to leave.
        RunFailed: The run failed before, and would again.
        TryAgain: The attempt was interrupted, by a request or by its surroundings.
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
        with suppress(OSError):  # a disk that is gone must not have the last word
            if _is_complete(folder):
                lock.remove()
                attempt.clear()
            else:
                lock.release()


def _is_complete(folder: RunFolder) -> bool:
    try:
        return folder.complete()
    except UserError:  # damaged: the attempt has told of it
        return False


def _patience(options: Options, stop: StopRequest, console: Console) -> Callable[[Held], bool]:
    """Whether to wait for another trainer, which is named once."""
    told: list[str] = []

    def waits(held: Held) -> bool:
        if not options.wait or stop.cause is not None or passed(options.deadline):
            return False
        if not told:
            told.append(str(held))
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
    """Record the end of an attempt that couldn't do so itself."""
    events = folder.events()
    if events and events[-1]["event"] not in ENDINGS:
        opened = [event["time"] for event in events if event["event"] == "opened"]
        lasted = max(0.0, dead.beat - opened[-1]) if opened else 0.0
        cause = f"{dead} ended without a word"
        folder.event("lost", cause=cause, last_beat=dead.beat, seconds=round(lasted, 3))


def _refuse_hopeless(folder: RunFolder, run: Run) -> None:
    """Don't repeat what failed by its numbers, unless something that decides them changed."""
    events = folder.events()
    last = events[-1] if events else {}
    if last.get("event") == "failed" and last.get("code") == code_sha256(run.config.modules):
        raise RunFailed(
            f"{run.id} failed before, with this same code: {last.get('cause')}. "
            + _ADVICE.format(run.id)
        )


@contextmanager
def _recorded(attempt: Attempt, run: Run) -> Iterator[None]:
    """Turn what ends an attempt into an event of the record, and into a message."""

    def ended(ending: str, cause: str, **facts: str) -> None:
        with suppress(OSError):  # the disk is full or gone: the lock's end tells as much
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
    """What to say when a disk is full, or a file system is away."""
    return TryAgain(
        f"{error.filename or folder.path}: {error.strerror or error}; mend that, and "
        f"`ofq train {run.id}` goes on from the last checkpoint"
    )
