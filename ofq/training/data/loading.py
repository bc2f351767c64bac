"""Loading of images in worker processes, and handling of their faults."""

import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, set_forkserver_preload
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ofq.config.datasets import Unreadable as Policy
from ofq.errors import TryAgain, UserError
from ofq.stopping import SIGNALS, end_with_parent
from ofq.training.data.augmentation import Transform, randomness_of
from ofq.training.data.decoding import Decoder, Plain
from ofq.training.data.readers import Split, Unreadable

_TRIES = 20  # images in a row; if none is readable, hardly any of the data set is
_DYING = 1.0  # seconds that a process may take from closing its files to its end
_CAUSES = {
    "Killed": ", perhaps for want of memory",
    "Bus error": " by a bus error, perhaps for want of room in /dev/shm",
    "Segmentation fault": " by a segmentation fault",
}
_started: list[BaseProcess] = []


class Key(NamedTuple):
    """Number of an image in its split, with all else that decides its augmentation."""

    number: int
    seed: int
    epoch: int
    copy: int = 0


class Sample(NamedTuple):
    """A preprocessed image (None if left out), and names of unreadable ones met for it."""

    image: Tensor | None
    label: int
    number: int
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A batch of images.

    Attributes:
        images: (B, channels, H, W), or (0,) if there is none.
        labels: (B,).
        numbers: (B,), positions of the images in their split.
        unreadable: Names of images that couldn't be decoded.
    """

    images: Tensor
    labels: Tensor
    numbers: Tensor
    unreadable: tuple[str, ...]

    def pin_memory(self) -> "Loaded":
        """Return the batch in pinned memory, for asynchronous copies to a GPU."""
        images, labels = self.images.pin_memory(), self.labels.pin_memory()
        return Loaded(images, labels, self.numbers, self.unreadable)


class Samples(Dataset[Sample]):
    """Preprocessed images of a split, each a function of its key.

    Args:
        split: The images.
        transform: Their preprocessing.
        policy: Policy for an image that can't be decoded.
        replace: Whether the next image replaces one that is skipped; else it is left out.
        decoder: Their decoder; Pillow by default.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        policy: Policy,
        replace: bool,
        decoder: Decoder | None = None,
    ) -> None:
        self.split = split
        self.decoder = decoder or Plain()
        self.transform = self.decoder.fitted(transform)
        self.policy = policy
        self.replace = replace

    def __getitem__(self, key: Key) -> Sample:
        names: list[str] = []
        for attempt in range(_TRIES if self.replace else 1):
            index = (key.number + attempt) % len(self.split)
            try:
                image, label = self.split.decode(index, self.decoder)
            except Unreadable as error:
                if self.policy == "fail":
                    raise UserError(str(error)) from None
                names.append(error.name)
                continue
            with randomness_of(*key):
                return Sample(self.transform(image), label, index, tuple(names))
        if self.replace:
            raise UserError(f"{names[0]} and the {_TRIES - 1} images after it: none is readable")
        return Sample(None, 0, key.number, tuple(names))


def load(
    samples: Samples, keys: Iterable[Sequence[Key]], workers: int, pin: bool = False
) -> Iterator[Loaded]:
    """Load batches of images in worker processes; draws none of this process's random numbers.

    The processes are started by Python's default start method (fork, spawn or forkserver), which
    ``multiprocessing.set_start_method`` changes; the images are the same.

    Args:
        samples: The images.
        keys: Keys of the images, batch by batch.
        workers: Number of processes.
        pin: Whether to pin the batches' memory, for a GPU.

    Raises:
        UserError: An image can't be read.
        TryAgain: Its file system can't be reached, or shared memory is too small for a batch.
    """
    loader: DataLoader[Sample] = DataLoader(
        samples,
        batch_sampler=keys,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=pin,
        generator=torch.Generator(),
    )
    set_forkserver_preload([__name__])  # else each process of a fork server imports torch again
    others = {child.pid for child in active_children()}
    batches = iter(loader)
    _started.extend(child for child in active_children() if child.pid not in others)
    Finalize(None, _end_workers, exitpriority=0)  # atexit works only in the main process
    try:
        yield from batches
    except (UserError, TryAgain) as error:  # a worker's, with its traceback in the message
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from None


def _end_workers() -> None:
    """Kill the workers that still run when this process ends, such as after an interruption.

    multiprocessing would send SIGTERM, which they ignore, and wait for ever.
    """
    for worker in _started:
        if worker.is_alive():
            worker.kill()


def _collate(samples: list[Sample]) -> Loaded:
    valid = [sample for sample in samples if sample.image is not None]
    batch = Loaded(
        torch.stack([s.image for s in valid if s.image is not None]) if valid else torch.empty(0),
        torch.tensor([sample.label for sample in valid], dtype=torch.long),
        torch.tensor([sample.number for sample in valid], dtype=torch.long),
        tuple(name for sample in samples for name in sample.unreadable),
    )
    if get_worker_info() is not None:
        _hand_over(batch)
    return batch


def _hand_over(batch: Loaded) -> None:
    """Move a batch to shared memory here, since a failure in torch's own transfer hangs."""
    try:
        for tensor in (batch.images, batch.labels, batch.numbers):
            tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        size = batch.images.nbytes / 1e6
        raise TryAgain(
            f"a batch of {size:.0f} MB can't be handed to the trainer ({error}): make /dev/shm "
            "larger (`docker run --shm-size`), the limit of open files higher (`ulimit -n`), or "
            "`workers` or the batch smaller"
        ) from None


@contextmanager
def workers_watched() -> Iterator[None]:
    """Convert torch's errors for a killed loading process to one clear error.

    Raises:
        TryAgain: A loading process was killed: torch raises that anywhere in the main thread,
            unless communication with the process failed first.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not _tells_of_a_killed_worker(error):
            raise
        match = re.search("by signal: ([^.]+)", str(error))
        cause = _CAUSES.get(match[1] if match else "Killed", "")
        raise TryAgain(f"a process that loads images was killed{cause}") from None


def _tells_of_a_killed_worker(error: Exception) -> bool:
    if "DataLoader worker (pid" in str(error):
        return True
    if isinstance(error, RuntimeError) and "Pin memory thread exited" not in str(error):
        return False
    try:
        alive = {worker.sentinel: worker for worker in _started if worker.is_alive()}
        for sentinel in wait(list(alive), _DYING):  # its files are closed before it is dead
            alive[sentinel].join()  # type: ignore[index]
    except RuntimeError:  # torch's own report of a killed worker
        return True
    return any(worker.exitcode == -signal.SIGKILL for worker in _started)


def _start_worker(worker: int) -> None:
    """Set up signals and output streams of a loading process.

    A signal to the whole process group must not end it before the trainer has saved. A thread of
    the trainer may have been writing at the fork, so the process gets output streams of its own:
    the inherited ones would wait for that thread.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    sys.stdout = open(1, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.excepthook = _silent_if_the_trainer_left


def _silent_if_the_trainer_left(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an uncaught error, unless it is a lost connection, which the trainer reports."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
