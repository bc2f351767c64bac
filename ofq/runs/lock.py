"""Lock of a run folder: one writer, on shared file systems too, without ``flock``.

A lock is a file ``lock-N.json`` that names its owner; the one with the highest N is valid. N is
never used twice, and the file is created exclusively (``O_EXCL``), so of several trainers that find
a dead owner one creates the next file, and an owner wrongly thought dead finds a higher N than its
own.

An owner's heartbeat is the file's time of modification, set by the file system's clock. Others
check whether it *changes*, timed by their own monotonic clock, so wall clocks decide nothing.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ofq.console import printable
from ofq.errors import TryAgain
from ofq.runs.record import opened

BEAT = 5.0
"""Seconds between heartbeats."""

SILENCE = 60.0
"""Seconds without a heartbeat after which an owner may be dead."""

_CONFIRMED = 3  # beats that a contender waits for before it takes a lock over
_LARGEST = 1 << 16  # bytes read of a lock's file
_NAME = re.compile(r"lock-(\d+)\.(json|free)")


class LockHeld(TryAgain):
    """Error: another trainer writes this run folder."""


class LockLost(TryAgain):
    """Error: another trainer took this run folder over; this one must not write to it again."""


@dataclass(frozen=True)
class Owner:
    """Owner of a lock: a process, identified across hosts and reuse of process ids.

    Attributes:
        host: Name of its host.
        pid: Its process id there.
        slurm_job: Id of its Slurm job; None outside Slurm.
        machine: Boot id and process namespace, in which the process id is valid.
        born: Start of the process, in ticks since boot; distinguishes a reused process id.
        token: Unique to this owner.
    """

    host: str
    pid: int
    slurm_job: str | None
    machine: str
    born: str
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """Return the calling process as an owner."""
        pid, job = os.getpid(), os.environ.get("SLURM_JOB_ID")
        return cls(socket.gethostname(), pid, job, _machine(), _born(pid), uuid.uuid4().hex)

    def gone(self) -> bool:
        """Return whether the process has certainly ended; unknowable for another machine's."""
        return self.machine == _machine() and _born(self.pid) != self.born

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return printable(f"process {self.pid} on {self.host}{job}")


@dataclass(frozen=True)
class Held:
    """A lock as read from the folder.

    Attributes:
        number: N.
        owner: Its owner; None if the file can't be parsed, such as while it is being written.
        beat: Time of the last heartbeat, in seconds since the epoch.
    """

    number: int
    owner: Owner | None
    beat: float

    def quiet(self) -> float:
        """Return seconds since the last heartbeat, by wall clocks: a hint, since they may jump."""
        return time.time() - self.beat

    def alive(self) -> bool:
        """Return whether the owner seems to be alive."""
        if self.owner is not None and self.owner.gone():
            return False
        return self.quiet() < SILENCE

    def __str__(self) -> str:
        return str(self.owner or "an unknown process")


def holder(folder: Path) -> Held | None:
    """Return the lock on a run folder, whose owner may be dead; None if there is none."""
    number, held = _newest(folder)
    return _read(folder, number) if held else None


class RunLock:
    """This process's lock on a run folder.

    Args:
        folder: The run folder, which exists.
        on_beat: Called after each heartbeat, from the heartbeat's thread.
        on_loss: Called once, from that thread, when another trainer has taken the lock over.
        beat: Seconds between heartbeats.
        silence: Seconds without one after which an owner may be dead.

    Attributes:
        number: N, which counts the folder's attempts.
    """

    def __init__(
        self,
        folder: Path,
        on_beat: Callable[[], None] = lambda: None,
        on_loss: Callable[[], None] = lambda: None,
        beat: float = BEAT,
        silence: float = SILENCE,
    ) -> None:
        self.folder = folder
        self.number = 0
        self._on_beat = on_beat
        self._on_loss = on_loss
        self._beat = beat
        self._silence = silence
        self._owner = Owner.this_process()
        self._resting = threading.Event()
        self._heart = threading.Thread(target=self._live, daemon=True, name="heartbeat")

    def acquire(self, waits: Callable[[Held], bool] = lambda held: False) -> Held | None:
        """Acquire the lock, if it is free or its owner is dead.

        Args:
            waits: Called repeatedly while a living owner holds it; returns whether to wait on.

        Returns:
            The dead owner's lock, if one was taken over.

        Raises:
            LockHeld: A living owner holds it, and ``waits`` returned False.
        """
        while True:
            number, taken = _newest(self.folder)
            held = _read(self.folder, number) if taken else None
            if held is not None and not self._dead(held):
                if not waits(held):
                    raise LockHeld(
                        f"{self.folder} is being written by {held}; its last sign of life was "
                        f"{max(0, held.quiet()):.0f} s ago. --wait waits for it"
                    )
                time.sleep(self._beat)
            elif self._make(number + 1):
                self._heart.start()
                return held

    def check(self) -> None:
        """Check that this process still holds the lock; to be called before each write.

        Raises:
            LockLost: It doesn't.
        """
        number, taken = _newest(self.folder)
        held = _read(self.folder, number) if taken else None
        if held is None or held.owner != self._owner:
            by = f"taken over by {held}" if held else "gone"
            raise LockLost(f"the lock on {self.folder} is {by}; stopped before writing to it")

    def release(self) -> None:
        """Release the lock; its number is not used again."""
        self._rest()
        try:
            self.check()
        except LockLost:
            return
        own = self._path()
        os.replace(own, own.with_suffix(".free"))

    def remove(self) -> None:
        """Remove all lock files, from a folder that is complete."""
        self._rest()
        for path in self.folder.glob("lock-*"):
            path.unlink(missing_ok=True)

    def _path(self) -> Path:
        return self.folder / f"lock-{self.number}.json"

    def _dead(self, held: Held) -> bool:
        if held.owner is not None and held.owner.gone():
            return True
        if 0 <= held.quiet() < self._silence:
            return False
        time.sleep(_CONFIRMED * self._beat)
        now = _read(self.folder, held.number)
        return now is not None and now.beat == held.beat

    def _make(self, number: int) -> bool:
        """Create the lock of a number; return False if another trainer was first."""
        self.number = number
        try:
            descriptor = os.open(self._path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(self._owner), file)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk must not leave a lock that nobody holds
            self._path().unlink()
            raise
        if _newest(self.folder)[0] != number:  # made while another was being renamed
            self._path().unlink()
            return False
        for path in self.folder.glob("lock-*"):
            if path != self._path():
                path.unlink(missing_ok=True)
        return True

    def _live(self) -> None:
        while not self._resting.wait(self._beat):
            try:
                os.utime(self._path())
                self._on_beat()
            except (FileNotFoundError, LockLost):
                self._on_loss()
                return
            except OSError:
                continue  # perhaps transient; `check` decides before each write

    def _rest(self) -> None:
        self._resting.set()
        if self._heart.is_alive():
            self._heart.join()


def _newest(folder: Path) -> tuple[int, bool]:
    """Return the highest number, and whether that lock is held (not released)."""
    matches = [m for name in os.listdir(folder) if (m := _NAME.fullmatch(name))]
    return max(((int(m[1]), m[2] == "json") for m in matches), default=(0, False))


def _read(folder: Path, number: int) -> Held | None:
    """Read a lock's file; None if it was removed."""
    try:
        # opened, not only stat: an NFS client then asks the server for the time
        with opened(folder / f"lock-{number}.json") as file:
            beat, text = os.fstat(file.fileno()).st_mtime, file.read(_LARGEST)
    except FileNotFoundError:
        return None
    return Held(number, _owner(text), beat)


def _owner(text: bytes) -> Owner | None:
    """Parse the owner in a lock's file; None if it can't be parsed."""
    try:
        owner = Owner(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    words = (owner.host, owner.slurm_job or "", owner.machine, owner.born, owner.token)
    whole = isinstance(owner.pid, int) and all(isinstance(word, str) for word in words)
    return owner if whole else None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _born(pid: int) -> str:
    """Return ticks from boot to a process's start; empty for no such process, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _seen(pid)
    return "" if fields[0] in "ZX" else fields[19]


def _seen(pid: int) -> str:
    """Return a substitute for the start time where there is no /proc; empty for no process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
