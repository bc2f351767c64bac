"""Objectives: training losses, and measures on the test set."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ofq.training.data.source import Batch
from ofq.training.distributed import SINGLE_PROCESS, SingleProcess
from ofq.training.precision import widened
from ofq.training.teacher import Teacher

Outputs = Tensor | tuple[Tensor, Tensor]

_FIVE = 5


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        measures: Measures by name: ``top1`` and ``top5`` in percent, ``loss``, and the counts
            ``correct`` and ``images``, as far as the objective has them.
        correct: Whether each example is classified correctly, (examples,) in the data set's order;
            None for a regression.
    """

    measures: dict[str, float]
    correct: NDArray[np.bool_] | None


class Objective(Protocol):
    """A training loss, and the measures of its evaluation.

    Attributes:
        primary: The measure in tables: ``top1`` or ``loss``.
        teacher: The teacher that runs during training; None without one.
    """

    primary: str
    teacher: Teacher | None

    def loss(
        self, outputs: Outputs, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> Tensor:
        """Return the training loss of one batch, a scalar.

        Args:
            outputs: The model's outputs: logits (B, classes), or class and distillation logits.
            labels: As for :class:`~ofq.training.data.source.Batch`.
            teacher_logits: (B, classes); None without a teacher.
        """

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], group: SingleProcess = SINGLE_PROCESS
    ) -> Evaluation:
        """Measure a model over the batches of all ranks, each example counted once.

        Waits for the device.
        """


class Classification:
    """Cross-entropy with the labels; evaluation gives top-1 and top-5 in percent."""

    primary = "top1"
    teacher: Teacher | None = None

    def loss(
        self, outputs: Outputs, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> Tensor:
        """Return the mean cross-entropy, for a distilled model that of the class head."""
        return F.cross_entropy(widened(_class_logits(outputs)), labels)

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], group: SingleProcess = SINGLE_PROCESS
    ) -> Evaluation:
        """Measure ``top1``, ``loss``, ``correct``, ``images`` and, from five classes, ``top5``."""
        classes = 0
        marks: list[Tensor] = []
        sums = _Sums(group, "correct", "among_five", "loss", "images")
        with _evaluating(model):
            for inputs, labels, _ in batches:
                logits = widened(model(inputs))
                classes = logits.shape[-1]
                best = logits.topk(min(_FIVE, classes)).indices
                marks.append(logits.argmax(-1) == labels)
                sums.add(
                    correct=marks[-1].sum(),
                    among_five=(best == labels.unsqueeze(-1)).sum(),
                    loss=F.cross_entropy(logits, labels, reduction="sum"),
                    images=len(labels),
                )
        total = sums.total()
        correct, images = int(total["correct"]), int(total["images"])
        top5 = {"top5": 100 * total["among_five"] / images} if classes >= _FIVE else {}
        measures = {
            "top1": 100 * correct / images,
            **top5,
            "loss": total["loss"] / images,
            "correct": correct,
            "images": images,
        }
        return Evaluation(measures, _in_order(marks, group))


class Distillation(Classification):
    """Loss from hard labels and a teacher, equally weighted (released code, ``KDLossSoftandHard``).

    CE(distillation logits, softmax(teacher)) + CE(class logits, label) at temperature 1, without
    smoothing; with one head both terms use it.

    Args:
        teacher: The full-precision model; None if batches include its logits.
    """

    def __init__(self, teacher: Teacher | None) -> None:
        self.teacher = teacher

    def loss(
        self, outputs: Outputs, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the two cross-entropies, each a mean over the batch."""
        assert teacher_logits is not None
        return distillation_loss(outputs, labels, teacher_logits)


class Regression:
    """Mean squared error, for training and evaluation."""

    primary = "loss"
    teacher: Teacher | None = None

    def loss(
        self, outputs: Outputs, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error of the batch."""
        assert isinstance(outputs, Tensor)
        return F.mse_loss(outputs, labels)

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], group: SingleProcess = SINGLE_PROCESS
    ) -> Evaluation:
        """Measure ``loss``, the mean squared error, and the number of examples ``images``."""
        sums = _Sums(group, "loss", "images")
        with _evaluating(model):
            for inputs, labels, _ in batches:
                loss = F.mse_loss(model(inputs), labels, reduction="sum")
                sums.add(loss=loss, images=len(labels))
        total = sums.total()
        measures = {"loss": total["loss"] / total["images"], "images": int(total["images"])}
        return Evaluation(measures, None)


def distillation_loss(outputs: Outputs, labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the loss of :class:`Distillation`, a scalar.

    Args:
        outputs: Logits (B, classes), or class and distillation logits.
        labels: Classes (B,), or shares of the classes (B, classes).
        teacher_logits: (B, classes).
    """
    class_logits, distillation_logits = outputs if isinstance(outputs, tuple) else (outputs,) * 2
    soft = F.cross_entropy(widened(distillation_logits), teacher_logits.softmax(-1))
    return soft + F.cross_entropy(widened(class_logits), labels)


def _in_order(marks: list[Tensor], group: SingleProcess) -> NDArray[np.bool_]:
    """Return the marks of all ranks in the data set's order: by batch, then by rank.

    Some ranks have no part in a last batch with fewer examples than ranks, so the lists differ in
    length by at most one.
    """
    lists = group.all_gather_object([batch.cpu().numpy() for batch in marks])
    parts = [part for batch in zip_longest(*lists) for part in batch if part is not None]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.bool_)


class _Sums:
    """Named sums over the batches of all ranks, in float64 on the device.

    Args:
        group: The process group.
        names: Names of the sums.
    """

    def __init__(self, group: SingleProcess, *names: str) -> None:
        self._group = group
        zero = torch.zeros((), dtype=torch.float64, device=group.device)
        self._sums = {name: zero.clone() for name in names}

    def add(self, **values: Tensor | int) -> None:
        """Add a batch's values; doesn't wait for the device."""
        for name, value in values.items():
            self._sums[name] += value

    def total(self) -> dict[str, float]:
        """Return the sums over all ranks; waits for the device."""
        sums = self._group.all_reduce_sum(torch.stack(list(self._sums.values())))
        return dict(zip(self._sums, sums.tolist(), strict=True))


class _evaluating:
    """Context of eval mode without gradients, which restores the previous mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.inference = torch.inference_mode()

    def __enter__(self) -> None:
        self.was_training = self.model.training
        self.model.eval()
        self.inference.__enter__()

    def __exit__(self, *error: object) -> None:
        self.inference.__exit__(*error)
        self.model.train(self.was_training)


def _class_logits(outputs: Outputs) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs
