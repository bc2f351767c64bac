"""What is minimized, and what is measured on the test set."""

from collections.abc import Iterable
from itertools import zip_longest
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ofq.training.data import Batch
from ofq.training.devices import ALONE, Solo
from ofq.training.precision import widened
from ofq.training.teacher import Clock, Teacher

Outputs = Tensor | tuple[Tensor, Tensor]

_FIVE = 5


class Objective(Protocol):
    """A loss, and the measures that go with it.

    Attributes:
        primary: The measure that tables show: ``top1`` or ``loss``.
        clock: What a teacher's answers cost; None without a teacher that answers.
        correct: Which examples the last evaluation found right, (N,) in the data set's order; None
            before it, and where there is no right and wrong.
    """

    primary: str
    clock: Clock | None
    correct: NDArray[np.bool_] | None

    def answers(self, inputs: Tensor) -> Tensor | None:
        """A teacher's logits (B, classes), if one answers."""

    def loss(self, outputs: Outputs, targets: Tensor, answers: Tensor | None = None) -> Tensor:
        """The training loss of one batch, a scalar, given a teacher's :meth:`answers`."""

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], process: Solo = ALONE
    ) -> dict[str, float]:
        """Measures over the batches of all processes, each example counted once.

        Waits for the device.
        """


class Classification:
    """Cross-entropy with the labels; evaluation gives top-1 and top-5 in percent."""

    primary = "top1"
    clock: Clock | None = None
    correct: NDArray[np.bool_] | None = None

    def answers(self, inputs: Tensor) -> Tensor | None:
        """None."""
        return None

    def loss(self, outputs: Outputs, targets: Tensor, answers: Tensor | None = None) -> Tensor:
        """Mean cross-entropy; of a distilled model, with the class head.

        Targets are labels (B,), or shares of the classes (B, classes).
        """
        return F.cross_entropy(widened(_class_logits(outputs)), targets)

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], process: Solo = ALONE
    ) -> dict[str, float]:
        """``top1`` (percent), ``loss``, and the counts ``correct`` and ``images``.

        With five classes or more, ``top5`` too.
        """
        classes = 0
        marks: list[Tensor] = []
        sums = _Sums(process, "correct", "among_five", "loss", "images")
        with _evaluating(model):
            for inputs, targets in batches:
                logits = widened(model(inputs))
                classes = logits.shape[-1]
                best = logits.topk(min(_FIVE, classes)).indices
                marks.append(logits.argmax(-1) == targets)
                sums.add(
                    correct=marks[-1].sum(),
                    among_five=(best == targets.unsqueeze(-1)).sum(),
                    loss=F.cross_entropy(logits, targets, reduction="sum"),
                    images=len(targets),
                )
        total = sums.total()
        self.correct = _in_order(marks, process)
        correct, images = int(total["correct"]), int(total["images"])
        top5 = {"top5": 100 * total["among_five"] / images} if classes >= _FIVE else {}
        return {
            "top1": 100 * correct / images,
            **top5,
            "loss": total["loss"] / images,
            "correct": correct,
            "images": images,
        }


class Distillation(Classification):
    """Hard labels and a teacher, equally weighted (released code, ``KDLossSoftandHard``).

    CE(distillation logits, softmax(teacher)) + CE(class logits, label) at temperature 1, without
    smoothing; with one head both terms use it.

    Args:
        teacher: The full-precision model.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.clock = teacher.clock

    def answers(self, inputs: Tensor) -> Tensor | None:
        """The teacher's."""
        return self.teacher.answer(inputs)

    def loss(self, outputs: Outputs, targets: Tensor, answers: Tensor | None = None) -> Tensor:
        """The sum of the two cross-entropies, each a mean over the batch."""
        assert answers is not None
        return distillation_loss(outputs, targets, answers)


class KeptDistillation(Classification):
    """:class:`Distillation` by answers that are given with the targets.

    See :meth:`ofq.training.data.Source.taught`.
    """

    def loss(self, outputs: Outputs, targets: Tensor, answers: Tensor | None = None) -> Tensor:
        """The sum of the two cross-entropies, for targets (B, 1 + classes)."""
        return distillation_loss(outputs, targets[:, 0].long(), targets[:, 1:])


class Regression:
    """Mean squared error."""

    primary = "loss"
    clock: Clock | None = None
    correct: NDArray[np.bool_] | None = None

    def answers(self, inputs: Tensor) -> Tensor | None:
        """None."""
        return None

    def loss(self, outputs: Outputs, targets: Tensor, answers: Tensor | None = None) -> Tensor:
        """Mean squared error of the batch."""
        assert isinstance(outputs, Tensor)
        return F.mse_loss(outputs, targets)

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], process: Solo = ALONE
    ) -> dict[str, float]:
        """``loss``, the mean squared error, and the number of examples ``images``."""
        sums = _Sums(process, "loss", "images")
        with _evaluating(model):
            for inputs, targets in batches:
                loss = F.mse_loss(model(inputs), targets, reduction="sum")
                sums.add(loss=loss, images=len(targets))
        total = sums.total()
        return {"loss": total["loss"] / total["images"], "images": int(total["images"])}


def distillation_loss(outputs: Outputs, targets: Tensor, teacher_logits: Tensor) -> Tensor:
    """See :class:`Distillation`.

    Args:
        outputs: Logits (B, classes), or class and distillation logits.
        targets: Labels (B,), or shares of the classes (B, classes).
        teacher_logits: (B, classes).
    """
    class_logits, distillation_logits = outputs if isinstance(outputs, tuple) else (outputs,) * 2
    soft = F.cross_entropy(widened(distillation_logits), teacher_logits.softmax(-1))
    return soft + F.cross_entropy(widened(class_logits), targets)


def _in_order(marks: list[Tensor], process: Solo) -> NDArray[np.bool_]:
    """All processes' marks, batch by batch, in each of them the first process's part first.

    A process has no part in a last batch with fewer examples than processes; so the lists differ
    in length by one at most.
    """
    lists = process.gather([batch.cpu().numpy() for batch in marks])
    parts = [part for batch in zip_longest(*lists) for part in batch if part is not None]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.bool_)


class _Sums:
    """Named sums over the batches of all processes, in float64 on the device.

    Args:
        process: This process.
        names: Of the sums.
    """

    def __init__(self, process: Solo, *names: str) -> None:
        self._process = process
        zero = torch.zeros((), dtype=torch.float64, device=process.device)
        self._sums = {name: zero.clone() for name in names}

    def add(self, **values: Tensor | int) -> None:
        """Add a batch's values; doesn't wait for the device."""
        for name, value in values.items():
            self._sums[name] += value

    def total(self) -> dict[str, float]:
        """The sums; waits for the device."""
        sums = self._process.total(torch.stack(list(self._sums.values())))
        return dict(zip(self._sums, sums.tolist(), strict=True))


class _evaluating:
    """Eval mode without gradients, then back to the mode before."""

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
