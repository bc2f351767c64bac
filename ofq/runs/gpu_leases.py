"""GPUs of one machine, leased to the runs that train on it at the same time.

A lease is an exclusive ``flock`` on a file that stands for a device. The kernel releases it when
its process ends, however that happens, so a dead owner's lease needs no reclaiming. Processes
forked from the owner hold it too, as they hold the device's memory; programs that it starts don't.

The files lie in ``/tmp``, at a path that depends on the user alone: a login session's own folders
(``XDG_RUNTIME_DIR``, ``TMPDIR``) differ between two workflows of one user, or vanish while one
runs. ``systemd-tmpfiles`` spares locked files.

Jobs of one Slurm job step lease from each other only: Slurm gives another step devices of its own,
which may have the same indices.
"""

import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ofq.errors import TryAgain, UserError
from ofq.hardware import gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that limits the devices a process may use; CUDA reads it at its start."""

_DEVICE = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")
_ROOT = Path("/tmp")
_QUEUE = "queue"
_POLL = 0.5  # seconds between two tries
_OWNER = 200  # bytes read of an owner's description


class NoDevice(TryAgain):
    """Error: the devices that a run needs were leased to others for as long as it could wait."""


@dataclass
class Lease:
    """Devices that belong to this process, and to its forks, until the last of them ends.

    Attributes:
        devices: Their names, as in ``CUDA_VISIBLE_DEVICES``.
        descriptors: The open files that hold them. Another program holds them too if it is started
            with these as its ``pass_fds``.
    """

    devices: list[str] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


def devices() -> list[str]:
    """Return the devices this process may lease: ``CUDA_VISIBLE_DEVICES``, or all of the machine.

    Like CUDA, stop at the first name that can't be a device's.
    """
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return [str(index) for index in range(len(gpus()))]
    names: list[str] = []
    for name in visible.split(","):
        if not _DEVICE.fullmatch(name.strip()):
            break
        names.append(name.strip())
    return names


def lease(
    count: int,
    owner: str,
    give_up: Callable[[], str | None] = lambda: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Lease:
    """Lease devices exclusively, all at once, and hide the others from this process.

    Call it before CUDA starts. Waiting processes queue: a request for many devices isn't overtaken
    by others for few. Leases nothing where torchrun or srun started this process, or where there is
    no device.

    Args:
        count: Number of devices.
        owner: Purpose of the lease, shown to other processes.
        give_up: Called while waiting; returns the cause to stop waiting, or None.
        tell: Called once with what is waited for.

    Raises:
        UserError: This process may never use so many devices, or lease files can't be made.
        NoDevice: ``give_up`` returned a cause.
    """
    present = devices() if count and "RANK" not in os.environ else []
    if not present:
        return Lease()
    if count > len(present):
        raise UserError(
            f"{owner} asks for {count} GPUs; this process may use {len(present)} "
            f"({VISIBLE} or the machine: {', '.join(present)})"
        )
    text = f"process {os.getpid()}, {owner}"
    queue, _ = _wait(lambda: _take([_QUEUE], 1, text), "its turn for GPUs, behind", give_up, tell)
    what = f"{count} of the GPUs {', '.join(present)}; leased are"
    try:
        descriptors, taken = _wait(lambda: _take(present, count, text), what, give_up, tell)
    finally:
        _let_go(queue)
    os.environ[VISIBLE] = ",".join(taken)
    return Lease(taken, descriptors)


def _wait(
    take: Callable[[], tuple[list[int], list[str]]],
    what: str,
    give_up: Callable[[], str | None],
    tell: Callable[[str], None],
) -> tuple[list[int], list[str]]:
    """Try until the files are locked; report once what is waited for."""
    reported = False
    while True:
        descriptors, names = take()
        if descriptors:
            return descriptors, names
        if not reported:
            reported = True
            tell(f"waiting for {what} {'; '.join(names)}")
        if (cause := give_up()) is not None:
            raise NoDevice(f"stopped by {cause}, while waiting for {what} {'; '.join(names)}")
        time.sleep(_POLL)


def _take(names: list[str], count: int, owner: str) -> tuple[list[int], list[str]]:
    """Lock ``count`` of the named files, or none.

    Returns:
        Descriptors and names of the locked files; or no descriptor, and the owners of the others.
    """
    taken: dict[str, int] = {}
    owners: list[str] = []
    for name in names:
        descriptor = _open(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            described = os.pread(descriptor, _OWNER, 0).decode(errors="replace").strip()
            owners.append(described if name == _QUEUE else f"{name} to {described}")
            os.close(descriptor)
            continue
        taken[name] = descriptor
        if len(taken) == count:
            _sign(taken.values(), owner)
            return list(taken.values()), list(taken)
    _let_go(list(taken.values()))
    return [], owners


def _sign(descriptors: Iterable[int], owner: str) -> None:
    """Write the owner into each locked file; ignore a full disk."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode(), 0)


def _let_go(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _open(name: str) -> int:
    path = _folder() / f"{_scope()}{name.replace('/', '_')}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _scope() -> str:
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID", "batch")
    return f"slurm-{job}-{step}-" if job else ""


def _folder() -> Path:
    """Return the user's folder of lease files; make it if needed.

    Raises:
        UserError: The path is not a folder of this user.
    """
    folder = _ROOT / f"ofq-leases-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise UserError(f"{folder}: not a folder of yours, so GPUs can't be leased; remove it")
    return folder
