"""One writer per run folder, on a shared file system too, without flock.

A lock is a file ``lock-N.json`` that names its owner; the highest N holds. N is never used twice,
and a file of that name is only ever made anew (``O_EXCL``), so of several trainers that find a dead
owner one makes the next file, and an owner that was thought dead finds a higher one than its own.

An owner's heartbeat is the file's time of modification, set by the file system's clock. Others look
at whether it *changes*, by a clock of their own that can't jump, so wall clocks decide nothing.
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

_CONFIRMED = 3  # beats that a contender listens for before it takes a lock over
_LARGEST = 1 << 16  # bytes of a lock's file that are looked at
_NAME = re.compile(r"lock-(\d+)\.(json|free)")


class LockHeld(TryAgain):
    """Another trainer writes this run folder."""


class LockLost(TryAgain):
    """Another trainer has taken this run folder over; nothing more may be written to it."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: Its host's name.
        pid: Its process id there.
        slurm_job: Its Slurm job's id, if it is one.
        machine: Boot and process namespace, in which the process id means something.
        born: When the process started, in ticks since that boot; tells a reused process id.
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
        """The calling process."""
        pid, job = os.getpid(), os.environ.get("SLURM_JOB_ID")
        return cls(socket.gethostname(), pid, job, _machine(), _born(pid), uuid.uuid4().hex)

    def gone(self) -> bool:
        """Whether the process has certainly ended; another machine's is never known to have."""
        return self.machine == _machine() and _born(self.pid) != self.born

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return printable(f"process {self.pid} on {self.host}{job}")


@dataclass(frozen=True)
class Held:
    """A lock as it was found.

    Attributes:
        number: N.
        owner: Its owner; None if the file can't be read, as while it is being written.
        beat: Time of the last heartbeat, in seconds since the epoch.
    """

    number: int
    owner: Owner | None
    beat: float

    def quiet(self) -> float:
        """Seconds since the last heartbeat, by wall clocks: a hint, since they may jump."""
        return time.time() - self.beat

    def alive(self) -> bool:
        """Whether the owner seems to be at work."""
        if self.owner is not None and self.owner.gone():
            return False
        return self.quiet() < SILENCE

    def __str__(self) -> str:
        return str(self.owner or "an unknown process")


def holder(folder: Path) -> Held | None:
    """The lock on a run folder, if there is one; its owner may be dead."""
    number, held = _newest(folder)
    return _read(folder, number) if held else None


class RunLock:
    """The lock on a run folder.

    Args:
        folder: The run folder, which exists.
        on_beat: Called after each heartbeat, from the heart's thread.
        on_loss: Called once, from that thread, when another trainer has taken the lock over.
        beat: Seconds between heartbeats.
        silence: Seconds without one after which an owner may be dead.

    Attributes:
        number: N; it counts the folder's attempts.
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
        """Take the lock: a free one, or a dead owner's.

        Args:
            waits: Asked about a living owner, again and again: whether to wait for it.

        Returns:
            The dead owner's lock, if that is whose place was taken.

        Raises:
            LockHeld: A living owner holds it, and ``waits`` said no.
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
        """Make sure that the lock is still this process's; to be called before each write.

        Raises:
            LockLost: It isn't.
        """
        number, taken = _newest(self.folder)
        held = _read(self.folder, number) if taken else None
        if held is None or held.owner != self._owner:
            by = f"taken over by {held}" if held else "gone"
            raise LockLost(f"the lock on {self.folder} is {by}; stopped before writing to it")

    def release(self) -> None:
        """Let the lock go; the number stays taken."""
        self._rest()
        try:
            self.check()
        except LockLost:
            return
        own = self._path()
        os.replace(own, own.with_suffix(".free"))

    def remove(self) -> None:
        """Leave no trace of locks in a folder that nobody will write again."""
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
        """Make the next lock; False if another trainer was first."""
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
                continue  # a file system that is away for a moment; `check` decides before a write

    def _rest(self) -> None:
        self._resting.set()
        if self._heart.is_alive():
            self._heart.join()


def _newest(folder: Path) -> tuple[int, bool]:
    """The highest number, and whether it is held (not let go)."""
    found = [m for name in os.listdir(folder) if (m := _NAME.fullmatch(name))]
    return max(((int(m[1]), m[2] == "json") for m in found), default=(0, False))


def _read(folder: Path, number: int) -> Held | None:
    """A lock's file; None if it is gone by now."""
    try:
        # opened, not only looked up: an NFS client then asks the server for the time
        with opened(folder / f"lock-{number}.json") as file:
            beat, text = os.fstat(file.fileno()).st_mtime, file.read(_LARGEST)
    except FileNotFoundError:
        return None
    return Held(number, _owner(text), beat)


def _owner(text: bytes) -> Owner | None:
    """The owner that a lock's file names; None if it can't be read, or names none."""
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
    """Ticks from boot to a process's start; empty if there is no such process, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _seen(pid)
    return "" if fields[0] in "ZX" else fields[19]


def _seen(pid: int) -> str:
    """Stands in for a start time where there is no /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
