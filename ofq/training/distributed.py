"""Devices and processes: one process for each device that a run trains on.

A run's processes hold the same weights at every moment. Each takes its share of every batch; the
gradients are averaged before the optimizer steps, so all of them take the same step.
"""

import os
import platform
import random
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, distributed, nn

from ofq.errors import TryAgain, UserError
from ofq.hardware import processes, processor
from ofq.training.meeting import OthersGone, join

Kind = Literal["cuda", "cpu"]

_APART = 1_000_003  # between the seeds of two processes


@dataclass(frozen=True)
class Devices:
    """What a run trains on.

    Attributes:
        count: Number of devices, and of processes.
        kind: GPUs, or the processor, which then stands in for each of them.
        gpus: Number of GPUs that were asked for.
    """

    count: int
    kind: Kind
    gpus: int

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"on {self.count} x {torch.cuda.get_device_name()}"
        return "on the CPU, since there is no CUDA" if self.gpus else "on the CPU"

    def describe(self) -> dict[str, Any]:
        """What the record says of them.

        Returns:
            ``devices``: names, one per process; ``driver``, ``cuda`` and ``cudnn``: versions, None
            without a GPU.
        """
        gpu = self.kind == "cuda"
        return {
            "devices": [torch.cuda.get_device_name() if gpu else processor()] * self.count,
            "driver": _driver() if gpu else None,
            "cuda": torch.version.cuda if gpu else None,
            "cudnn": torch.backends.cudnn.version() if gpu else None,
        }


def choose(gpus: int) -> Devices:
    """The devices for a run that asks for some GPUs; without CUDA, so many processes on the CPU.

    Args:
        gpus: Number of GPUs, leased already; 0 for the CPU.
    """
    kind: Kind = "cuda" if gpus and torch.cuda.is_available() else "cpu"
    return Devices(processes(gpus), kind, gpus)


class SingleProcess:
    """The only process of a run: rank 0 of 1.

    Several ranks agree on what this one decides by itself (:class:`ProcessGroup`).

    Args:
        device: What it computes on.

    Attributes:
        rank: Number of this process, from 0; the first one writes the record.
        count: Number of processes.
    """

    rank = 0
    count = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; doesn't wait for the device."""

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        return sums

    def all_gather_object(self, value: Any) -> list[Any]:
        """Each process's value, by rank."""
        return [value]

    def broadcast_object(self, value: Any) -> Any:
        """The first process's value."""
        return value

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Give a model the first process's parameters and buffers."""

    def agree(self, cause: str | None, save: bool) -> tuple[str | None, bool]:
        """Why to stop, if any process has a cause, and whether any wants a checkpoint."""
        return cause, save

    def part(self, examples: int) -> slice:
        """This process's part of some examples; the parts differ by one in length at most."""
        return slice(examples * self.rank // self.count, examples * (self.rank + 1) // self.count)

    def barrier(self) -> None:
        """Wait for the other processes to come here."""

    def seed_per_rank(self, seed: int) -> None:
        """Let random numbers, as of drop path, differ between the processes from here on."""

    def destroy(self) -> None:
        """Take leave of the other processes."""


SINGLE_PROCESS = SingleProcess(torch.device("cpu"))
"""The default: one process on the CPU."""


class ProcessGroup(SingleProcess):
    """One of several processes that train one run.

    Joins the others by torchrun's environment variables: ``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``,
    ``MASTER_ADDR`` and ``MASTER_PORT``.

    Args:
        kind: What the processes compute on. Tensors there travel by NCCL on GPUs; decisions, and
            all else in main memory, by gloo.
        check: Called while this process waits for the others to come; raises to leave.

    Raises:
        UserError: A variable is missing, or there are fewer GPUs than processes on this machine.
        OthersGone: Another process didn't come; raised by all methods, too, if one has gone.
    """

    def __init__(self, kind: Kind, check: Callable[[], None] = lambda: None) -> None:
        super().__init__(_own_device(kind))
        join("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", check)
        self.rank = distributed.get_rank()
        self.count = distributed.get_world_size()

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """One reduction of all tensors in a fixed layout.

        So the order of sums, and with it the last bits, are the same after a resumption, for any
        number of processes.
        """
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _reaching():
            distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        """See :meth:`SingleProcess.all_reduce_sum`."""
        with _reaching():
            distributed.all_reduce(sums)
        return sums

    def all_gather_object(self, value: Any) -> list[Any]:
        """See :meth:`SingleProcess.all_gather_object`."""
        values = [None] * self.count
        with _reaching():
            distributed.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """See :meth:`SingleProcess.broadcast_object`."""
        values = [value]
        with _reaching():
            distributed.broadcast_object_list(values)
        return values[0]

    def broadcast_parameters(self, model: nn.Module) -> None:
        """See :meth:`SingleProcess.broadcast_parameters`."""
        for tensor in model.state_dict().values():
            with _reaching():
                distributed.broadcast(tensor, src=0)

    def agree(self, cause: str | None, save: bool) -> tuple[str | None, bool]:
        """One small reduction in main memory; doesn't wait for the device."""
        wishes = torch.tensor([cause is not None, save], dtype=torch.uint8)
        with _reaching():
            distributed.all_reduce(wishes, distributed.ReduceOp.MAX)
        stop, save = wishes.tolist()
        if stop:
            cause = next(found for found in self.all_gather_object(cause) if found is not None)
        return cause, bool(save)

    def barrier(self) -> None:
        """See :meth:`SingleProcess.barrier`; doesn't wait for the device."""
        self.all_gather_object(None)

    def seed_per_rank(self, seed: int) -> None:
        """See :meth:`SingleProcess.seed_per_rank`."""
        seed_everything(seed + _APART * self.rank)

    def destroy(self) -> None:
        """See :meth:`SingleProcess.destroy`."""
        with suppress(RuntimeError):  # the others may be gone
            distributed.destroy_process_group()


def take_part(
    devices: Devices, threads: int, check: Callable[[], None] = lambda: None
) -> SingleProcess:
    """Set up this rank's device and join the others; ends with :meth:`SingleProcess.destroy`.

    Args:
        devices: What the run trains on.
        threads: CPU threads of all processes; the number decides the last bits of sums.
        check: As of :class:`ProcessGroup`.
    """
    torch.set_num_threads(max(1, threads // devices.count))
    return (
        ProcessGroup(devices.kind, check)
        if devices.count > 1
        else SingleProcess(_own_device(devices.kind))
    )


def seed_everything(seed: int) -> None:
    """Seed torch, NumPy and Python, and ask torch for deterministic algorithms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS's aren't
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # what that does besides, at the cost of a pass over each new tensor: nothing reads such memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def gradients(model: nn.Module) -> Iterable[Tensor]:
    """The gradients that the last backward passes left, in the order of the parameters."""
    return (p.grad for p in model.parameters() if p.grad is not None)


_BUGS = ("device-side assert", "illegal memory access")  # of code, not of a device
_OWN_FAULTS = (torch.OutOfMemoryError, torch.AcceleratorError)


@contextmanager
def faults_told() -> Iterator[None]:
    """Tell of a GPU's faults in a way that a person understands.

    Raises:
        UserError: Its memory is too small.
        TryAgain: It failed, or somebody else holds it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        raise UserError(
            f"{reason}; passes of fewer images need less: `device_batch` in the recipe's resources"
        ) from None
    except torch.AcceleratorError as error:
        if any(words in str(error) for words in _BUGS):
            raise
        reason = str(error).partition("\n")[0]
        raise TryAgain(f"the GPU failed on {platform.node()} ({reason})") from None


@contextmanager
def _reaching() -> Iterator[None]:
    """Around what needs the other processes."""
    try:
        yield
    except _OWN_FAULTS:
        raise
    except RuntimeError as error:
        if "DataLoader worker" in str(error):  # torch raises that anywhere in the main thread
            raise
        reason = str(error).partition("\n")[0]
        raise OthersGone(f"another process of this run is gone ({reason})") from None


def _own_device(kind: Kind) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    index, present = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= present:
        raise UserError(f"LOCAL_RANK is {index}, but this process sees {present} GPUs")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip()
