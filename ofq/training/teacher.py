"""Full-precision teacher: its logits, their cost, and their cache on disk."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from ofq.atomic import write_file
from ofq.config.stage import Precision
from ofq.errors import UserError
from ofq.models.compiling import compile_blocks
from ofq.stopping import StopRequest
from ofq.training.data.source import Source, until
from ofq.training.distributed import SingleProcess
from ofq.training.graphs import Graph
from ofq.training.precision import casting, widened

_BATCH = 256


class Teacher:
    """Teacher model in eval mode, run without gradients in a precision of its own.

    Args:
        model: The full-precision model, on its device; the logits of a distilled one are the mean
            of its heads, as in evaluation.
        precision: Precision of its products.
        captured: Whether to compile its blocks and capture its kernels (:class:`Graph`); needs a
            GPU, and inputs of one shape.

    Attributes:
        clock: Device time of its forward passes.
    """

    def __init__(
        self, model: nn.Module, precision: Precision = "fp32", captured: bool = False
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.precision = precision
        self.clock = Clock()
        self._run: Callable[[Tensor], Tensor | None] = self._logits
        if captured:
            compile_blocks(model, next(model.parameters()).device)
            self._run = Graph(self._logits)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits (B, classes) in float32."""
        self.clock.begin(inputs.device)
        logits = self._run(inputs)
        self.clock.end()
        assert logits is not None
        return logits

    def _logits(self, inputs: Tensor) -> Tensor:
        with torch.no_grad(), casting(self.precision, inputs.device):
            return widened(self.model(inputs))


class Clock:
    """Measurement of the device time of repeated calls, without waiting for the device.

    On a GPU one call at a time is measured; calls made before it has finished aren't measured.

    Attributes:
        seconds: Total time of the measured calls.
        calls: Number of measured calls.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._began: float | None = None
        self._events: list[torch.cuda.Event] = []

    def begin(self, device: torch.device) -> None:
        """Mark the beginning of a call on a device."""
        if device.type == "cpu":
            self._began = time.perf_counter()
            return
        self._began = None
        if len(self._events) == 2 and self._events[1].query():
            self._count(self._events[0].elapsed_time(self._events[1]) / 1000)
            self._events = []
        if not self._events:
            self._events = [_event()]

    def end(self) -> None:
        """Mark the end of the call."""
        if self._began is not None:
            self._count(time.perf_counter() - self._began)
        elif len(self._events) == 1:
            self._events.append(_event())

    def mean(self) -> float | None:
        """Return seconds per call; None if none was measured."""
        return self.seconds / self.calls if self.calls else None

    def _count(self, seconds: float) -> None:
        self.seconds += seconds
        self.calls += 1


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def cached_teacher_logits(
    file: Path, teacher: Teacher, data: Source, group: SingleProcess, stop: StopRequest
) -> numpy.ndarray:
    """Load cached teacher logits on all training examples; compute the file if it doesn't exist.

    Rank 0 computes it; the others wait.

    Args:
        file: The cache, float32 (examples, classes); its name must identify teacher, data and
            precision.
        teacher: The teacher.
        data: The training data; each example must be equal in every epoch.
        group: The process group.
        stop: Stop request, checked after every batch.

    Returns:
        The logits, memory-mapped.

    Raises:
        Interrupted: A stop is requested.
        UserError: The file has another content.
    """
    if group.rank == 0 and not file.exists():
        batches = until(stop, data.in_order(_BATCH))
        logits = [teacher.logits(b.inputs.to(group.device)).cpu().numpy() for b in batches]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, lambda temporary: _save(numpy.concatenate(logits), temporary))
    group.barrier()
    try:
        cached = numpy.load(file, mmap_mode="c")  # torch warns of read-only arrays
        fits = cached.dtype == numpy.float32 and cached.shape == (data.examples, data.classes)
    except (ValueError, EOFError):  # truncated, or of another format
        fits = False
    if not fits:
        raise UserError(f"{file}: not the teacher's answers on these images; remove it")
    return cached


def _save(logits: numpy.ndarray, path: Path) -> None:
    with path.open("wb") as stream:  # given a path, NumPy would append a suffix
        numpy.save(stream, logits)
