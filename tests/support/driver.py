"""The ``ofq`` command with one fault in it, at a chosen moment.

A fault strikes in the process itself, so that its moment is exact and can be repeated.
"""

import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ofq.cli
from ofq.runs.attempt import Attempt
from ofq.runs.folder import RunFolder
from ofq.training import checkpoint, rendezvous


def _at_step(moment: int, strike: Callable[[Attempt], object]) -> None:
    """Strike once, after an optimizer step."""
    step = Attempt.step

    def struck(self: Attempt, now: int) -> None:
        step(self, now)
        if now == moment:
            strike(self)

    Attempt.step = struck  # type: ignore[method-assign]


def kill_at_step(moment: str) -> None:
    _at_step(int(moment), lambda attempt: os.kill(os.getpid(), signal.SIGKILL))


def terminate_at_step(moment: str) -> None:
    _at_step(int(moment), lambda attempt: os.kill(os.getpid(), signal.SIGTERM))


def kill_helper_at_step(moment: str) -> None:
    """Kill the process that was started first, of those that train along."""

    def strike(attempt: Attempt) -> None:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGKILL)

    _at_step(int(moment), strike)


def stop_at_step(moment: str) -> None:
    """Stand still, as a process does whose host is suspended; not amid a write of the heart's."""
    Attempt.beat = lambda self: None  # type: ignore[method-assign]
    _at_step(int(moment), lambda attempt: os.kill(os.getpid(), signal.SIGSTOP))


def kill_in_save(number: str) -> None:
    """Die half-way through a write of the nth checkpoint."""
    write, save, count = checkpoint._Hashing.write, checkpoint._save, [0]

    def counted(*arguments: object) -> str:
        count[0] += 1
        return save(*arguments)  # type: ignore[arg-type]

    def torn(self: checkpoint._Hashing, data: bytes) -> int:
        if count[0] == int(number):
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, data)

    checkpoint._Hashing.write = torn  # type: ignore[method-assign]
    checkpoint._save = counted


def fail_in_save(number: str) -> None:
    """Let the nth checkpoint find no room."""
    save, count = checkpoint._save, [0]

    def counted(*arguments: object) -> str:
        count[0] += 1
        if count[0] == int(number):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(*arguments)  # type: ignore[arg-type]

    checkpoint._save = counted


def fill_at_step(moment: str) -> None:
    """Leave no room on the run folder's disk."""

    def fill(attempt: Attempt) -> None:
        free = shutil.disk_usage(attempt.folder.path).free
        (attempt.folder.path / "ballast").write_bytes(bytes(free))

    _at_step(int(moment), fill)


def fail_at_the_end(moment: str) -> None:
    """Let the final files find no room, after a while."""

    def fail(*arguments: object) -> None:
        time.sleep(float(moment))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    RunFolder.finish = fail  # type: ignore[method-assign]


def jump_at_step(moment: str) -> None:
    """Let the wall clock jump, forward and then back beyond where it was."""
    clock, jump = time.time, [0.0]
    first, second = (int(part) for part in moment.split(","))
    _at_step(first, lambda attempt: jump.__setitem__(0, 7200.0))
    _at_step(second, lambda attempt: jump.__setitem__(0, -7200.0))
    time.time = lambda: clock() + jump[0]


def slow_steps(seconds: str) -> None:
    """Let each step take longer, so that others can act meanwhile."""
    step = Attempt.step

    def slowed(self: Attempt, now: int) -> None:
        step(self, now)
        time.sleep(float(seconds))

    Attempt.step = slowed  # type: ignore[method-assign]


def meet_within(seconds: str) -> None:
    """Let ranks wait for each other for so long only."""
    rendezvous._PATIENCE = float(seconds)


def none(_: str) -> None:
    """No fault."""


def main() -> None:
    """What stands in ``sys.argv``: a fault, its argument, and the arguments of ``ofq``."""
    name, fault, argument, *arguments = sys.argv
    globals()[fault](argument)
    sys.argv = [name, *arguments]
    ofq.cli.main()
