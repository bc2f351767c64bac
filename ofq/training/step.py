"""One optimizer step: the gradients of a batch, and what is done with them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ofq.quantization import OscillationTracker
from ofq.study.stage import Precision
from ofq.training.compiling import compile_blocks
from ofq.training.devices import Solo, gradients
from ofq.training.graphs import Graph, recording
from ofq.training.objective import Objective
from ofq.training.precision import casting
from ofq.training.stepping import Stepper


@dataclass
class Step:
    """Computes gradients (:meth:`backward`) and steps the optimizer (:meth:`update`).

    Attributes:
        model: What is trained.
        objective: What it minimizes.
        optimizer: Its optimizer.
        stepper: How the optimizer steps.
        scaler: What scales the losses.
        tracker: Told of every step; None for none.
        process: This process among those of the run.
        precision: What products are computed in.
        passes: Forward and backward passes that a process's part of a batch is split into.
    """

    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    stepper: Stepper
    scaler: GradScaler
    tracker: OscillationTracker | None
    process: Solo
    precision: Precision = "fp32"
    passes: int = 1

    def backward(self, inputs: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Leave the gradients of a whole batch's mean loss, of which a part is given.

        Args:
            inputs: This process's part of the batch.
            targets: Likewise.
            progress: The share of the training done.

        Returns:
            That loss, the same in all processes, so that they judge it alike.
        """
        found = map(self.objective.answers, inputs.chunk(self.passes))
        answers = [answer for answer in found if answer is not None]
        taught = [torch.cat(answers)] if answers else []
        loss = self._backward(progress, inputs, targets, *taught)
        self.process.average([loss, *gradients(self.model)])
        return loss

    def update(self, progress: float) -> None:
        """Step the optimizer by these gradients, and let the tracker see what became of it."""
        self.stepper.step(self.optimizer, progress, self.scaler)
        self.scaler.update()
        if self.tracker is not None:
            self.tracker.update()

    def renew(self) -> None:
        """Hear that learning rates have changed, or that state was loaded."""

    def _backward(self, progress: float, *batch: Tensor) -> Tensor:
        """Leave the gradients of the mean loss over the given part of a batch; return that loss."""
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=self.process.device)
        parts = (tensor.chunk(self.passes) for tensor in batch)
        for inputs, *targets in zip(*parts, strict=True):
            with casting(self.precision, self.process.device):
                outputs = self.model(inputs)
            loss = self.objective.loss(outputs, *targets)
            whole = (loss + self.stepper.penalty(progress)) / self.passes
            self.scaler.scale(whole).backward()
            mean += loss.detach() / self.passes
        return mean


@dataclass
class RecordedStep(Step):
    """A step on a GPU by two CUDA graphs, for a stepper that is ``steady``.

    All batches have one shape.
    """

    def __post_init__(self) -> None:
        """Nothing is recorded yet."""
        self._passes = Graph(partial(super()._backward, 0.0))
        self._rest = Graph(self._steadily)

    def update(self, progress: float) -> None:
        """See :meth:`Step.update`."""
        self._rest()

    def renew(self) -> None:
        """Record the update anew: rates are numbers in Python, and loaded state lies elsewhere."""
        self._rest.forget()

    def _steadily(self) -> None:
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # a fused AdamW is in any case, but torch wants to be told
                group["capturable"] = recording()
        super().update(progress=0.0)

    def _backward(self, progress: float, *batch: Tensor) -> Tensor:
        loss = self._passes(*batch)
        assert loss is not None
        return loss


def make_step(compiled: bool, **parts: Any) -> Step:
    """A step, of a model whose blocks get compiled if wanted.

    Args:
        compiled: Whether to compile; on a GPU, also to record (:class:`RecordedStep`).
        **parts: The attributes of :class:`Step`.
    """
    step = Step(**parts)
    device = step.process.device
    if not compiled:
        return step
    compile_blocks(step.model, device)
    return RecordedStep(**parts) if device.type == "cuda" and step.stepper.steady else step
