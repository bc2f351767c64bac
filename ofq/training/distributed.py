"""Devices and ranks: one process for each device that a run trains on.

All ranks of a run hold the same weights. Each takes its part of every batch; the gradients are
averaged before the optimizer steps, so all ranks take the same step.
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
from ofq.training.rendezvous import OthersGone, join

Kind = Literal["cuda", "cpu"]

_APART = 1_000_003  # difference between the seeds of two ranks


@dataclass(frozen=True)
class Devices:
    """Devices that a run trains on.

    Attributes:
        count: Number of devices, and of ranks.
        kind: GPUs, or the CPU, which all ranks then share.
        gpus: Number of GPUs requested.
    """

    count: int
    kind: Kind
    gpus: int

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"on {self.count} x {torch.cuda.get_device_name()}"
        return "on the CPU, since there is no CUDA" if self.gpus else "on the CPU"

    def describe(self) -> dict[str, Any]:
        """Return the facts of the devices for the record.

        Returns:
            ``devices``: names, one per rank; ``driver``, ``cuda`` and ``cudnn``: versions, None
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
    """Return the devices of a run; without CUDA, the requested number of ranks on the CPU.

    Args:
        gpus: Number of GPUs, leased already; 0 for the CPU.
    """
    kind: Kind = "cuda" if gpus and torch.cuda.is_available() else "cpu"
    return Devices(processes(gpus), kind, gpus)


class SingleProcess:
    """Process group of a run on one device: rank 0 of 1.

    Collective operations are trivial here; :class:`ProcessGroup` has them for several ranks.

    Args:
        device: Device of the rank.

    Attributes:
        rank: Number of this rank, from 0; rank 0 writes the record.
        count: Number of ranks.
    """

    rank = 0
    count = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks; doesn't wait for the device."""

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; may change the tensor."""
        return sums

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return each rank's value, by rank."""
        return [value]

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value."""
        return value

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Replace a model's parameters and buffers by rank 0's."""

    def agree(self, cause: str | None, save: bool) -> tuple[str | None, bool]:
        """Return a cause to stop, if any rank has one, and whether any rank wants a checkpoint."""
        return cause, save

    def part(self, examples: int) -> slice:
        """Return this rank's part of some examples; the parts differ by at most one in length."""
        return slice(examples * self.rank // self.count, examples * (self.rank + 1) // self.count)

    def barrier(self) -> None:
        """Wait until all ranks have called this."""

    def seed_per_rank(self, seed: int) -> None:
        """Seed each rank differently, so that stochastic depth is independent across ranks."""

    def destroy(self) -> None:
        """Leave the process group."""


SINGLE_PROCESS = SingleProcess(torch.device("cpu"))
"""Default process group: one rank on the CPU."""


class ProcessGroup(SingleProcess):
    """Process group of a run on several devices, seen from one rank.

    Joins the other ranks by torchrun's environment variables: ``RANK``, ``LOCAL_RANK``,
    ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``.

    Args:
        kind: Kind of the devices. Tensors on GPUs are communicated by NCCL, tensors and objects in
            main memory by gloo.
        check: Called while this rank waits for the others to join; raises to stop waiting.

    Raises:
        UserError: A variable is missing, or there are fewer GPUs than ranks on this machine.
        OthersGone: Another rank didn't join; raised by all methods, too, if one has ended.
    """

    def __init__(self, kind: Kind, check: Callable[[], None] = lambda: None) -> None:
        super().__init__(_own_device(kind))
        join("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", check)
        self.rank = distributed.get_rank()
        self.count = distributed.get_world_size()

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in one reduction of a fixed layout.

        The order of sums, and so their last bits, are then equal after a resumption, for any number
        of ranks.
        """
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _reaching():
            distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, computed in place."""
        with _reaching():
            distributed.all_reduce(sums)
        return sums

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return each rank's value, by rank."""
        values = [None] * self.count
        with _reaching():
            distributed.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value."""
        values = [value]
        with _reaching():
            distributed.broadcast_object_list(values)
        return values[0]

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Replace a model's parameters and buffers by rank 0's."""
        for tensor in model.state_dict().values():
            with _reaching():
                distributed.broadcast(tensor, src=0)

    def agree(self, cause: str | None, save: bool) -> tuple[str | None, bool]:
        """Agree on stopping and saving in main memory; doesn't wait for the device."""
        wishes = torch.tensor([cause is not None, save], dtype=torch.uint8)
        with _reaching():
            distributed.all_reduce(wishes, distributed.ReduceOp.MAX)
        stop, save = wishes.tolist()
        if stop:
            cause = next(each for each in self.all_gather_object(cause) if each is not None)
        return cause, bool(save)

    def barrier(self) -> None:
        """Wait until all ranks have called this; doesn't wait for the device."""
        self.all_gather_object(None)

    def seed_per_rank(self, seed: int) -> None:
        """Seed this rank with a seed of its own."""
        seed_everything(seed + _APART * self.rank)

    def destroy(self) -> None:
        """Leave the process group, even if other ranks have ended."""
        with suppress(RuntimeError):  # other ranks may have ended
            distributed.destroy_process_group()


def take_part(
    devices: Devices, threads: int, check: Callable[[], None] = lambda: None
) -> SingleProcess:
    """Set up this rank's device and join the others; leave by :meth:`SingleProcess.destroy`.

    Args:
        devices: The run's devices.
        threads: CPU threads over all ranks; the number affects the last bits of sums.
        check: As for :class:`ProcessGroup`.
    """
    torch.set_num_threads(max(1, threads // devices.count))
    return (
        ProcessGroup(devices.kind, check)
        if devices.count > 1
        else SingleProcess(_own_device(devices.kind))
    )


def seed_everything(seed: int) -> None:
    """Seed torch, NumPy and Python, and ask torch for deterministic algorithms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is nondeterministic
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # by default this also fills new tensors, at the cost of a pass over each; nothing reads them
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def gradients(model: nn.Module) -> Iterable[Tensor]:
    """Return the gradients of the last backward passes, in the order of the parameters."""
    return (p.grad for p in model.parameters() if p.grad is not None)


def statistics(model: nn.Module) -> Iterable[Tensor]:
    """Return the running means and variances of batch norms, which each rank's batches change."""
    return (
        average
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for average in (module.running_mean, module.running_var)
        if average is not None
    )


_BUGS = ("device-side assert", "illegal memory access")  # faults of code, not of a device
_OWN_FAULTS = (torch.OutOfMemoryError, torch.AcceleratorError)


@contextmanager
def faults_told() -> Iterator[None]:
    """Convert torch's errors for a GPU's faults to errors with advice.

    Raises:
        UserError: The GPU's memory is too small.
        TryAgain: The GPU failed, or another process uses it exclusively.
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
    """Convert errors of collective operations to :class:`OthersGone`."""
    try:
        yield
    except _OWN_FAULTS:
        raise
    except RuntimeError as error:
        if "DataLoader worker" in str(error):  # torch raises that anywhere in the main thread
            raise
        reason = str(error).partition("\n")[0]
        raise OthersGone(f"another rank of this run is gone ({reason})") from None


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
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.partition("\n")[0].strip()
