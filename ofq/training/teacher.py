"""The full-precision teacher: its answers, what they cost, and answers that are kept in a file."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from ofq.atomic import write_file
from ofq.config.stage import Precision
from ofq.errors import UserError
from ofq.stopping import StopRequest
from ofq.training.compile import compile_blocks
from ofq.training.data.source import Source, until
from ofq.training.distributed import SingleProcess
from ofq.training.graphs import Graph
from ofq.training.precision import casting, widened

_BATCH = 256


class Teacher:
    """A model in eval mode that answers without gradients, in a precision of its own.

    Args:
        model: The full-precision model, on its device; a distilled one answers with the mean of its
            heads, as it does in evaluation.
        precision: What its products are computed in.
        captured: Whether its blocks are compiled and its kernels captured (:class:`Graph`); needs a
            GPU, and inputs of one shape.

    Attributes:
        clock: What its answers cost.
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
        """Logits (B, classes) in float32."""
        self.clock.begin(inputs.device)
        logits = self._run(inputs)
        self.clock.end()
        assert logits is not None
        return logits

    def _logits(self, inputs: Tensor) -> Tensor:
        with torch.no_grad(), casting(self.precision, inputs.device):
            return widened(self.model(inputs))


class Clock:
    """Measures the device's time for something that happens often, without waiting for it.

    On a GPU one call at a time is under measurement; calls that come before it is done aren't
    measured.

    Attributes:
        seconds: Of all measured calls.
        calls: Their number.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._began: float | None = None
        self._events: list[torch.cuda.Event] = []

    def begin(self, device: torch.device) -> None:
        """A call begins, on a device."""
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
        """It ends."""
        if self._began is not None:
            self._count(time.perf_counter() - self._began)
        elif len(self._events) == 1:
            self._events.append(_event())

    def mean(self) -> float | None:
        """Seconds per call; None if none was measured."""
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
    """A teacher's logits on all training examples, from a file, which is made if it isn't there.

    The first process makes it; the others wait.

    Args:
        file: Where they are kept, float32 (examples, classes); its name must tell teacher, data and
            precision apart.
        teacher: The teacher.
        data: What it answers on; each example must be the same in every epoch.
        group: This process.
        stop: Looked at after every batch.

    Returns:
        The logits, read from the disk as they are needed.

    Raises:
        Interrupted: A stop is requested.
        UserError: The file holds something else.
    """
    if group.rank == 0 and not file.exists():
        batches = until(stop, data.in_order(_BATCH))
        logits = [teacher.logits(b.inputs.to(group.device)).cpu().numpy() for b in batches]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, lambda temporary: _save(numpy.concatenate(logits), temporary))
    group.barrier()
    try:
        answers = numpy.load(file, mmap_mode="c")  # a copy of what is written to: nothing is
        fits = answers.dtype == numpy.float32 and answers.shape == (data.examples, data.classes)
    except (ValueError, EOFError):  # cut short, or of another kind
        fits = False
    if not fits:
        raise UserError(f"{file}: not the teacher's answers on these images; remove it")
    return answers


def _save(logits: numpy.ndarray, path: Path) -> None:
    with path.open("wb") as stream:  # by its name, NumPy would give the file another suffix
        numpy.save(stream, logits)
