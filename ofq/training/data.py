"""Data sets as batches whose order is a function of seed and epoch."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy
import torch
from torch import Tensor

from ofq.errors import UserError
from ofq.interruption import Interrupted, StopRequest
from ofq.study.dataset import DataFacts, digest_of
from ofq.training.devices import ALONE, Solo

_DIGITS_MEAN, _DIGITS_DEVIATION = 4.884, 6.017


class Batch(NamedTuple):
    """Examples that go through a model together.

    Attributes:
        inputs: (B, ...), such as images (B, channels, H, W).
        labels: Classes (B,), shares of the classes (B, classes), or numbers (B, outputs).
        teacher_logits: (B, classes), where the teacher has answered.
    """

    inputs: Tensor
    labels: Tensor
    teacher_logits: Tensor | None = None

    def chunk(self, count: int) -> "list[Batch]":
        """Split it into ``count`` batches of equal size."""
        parts = (t.chunk(count) if t is not None else (None,) * count for t in self)
        return [Batch(*part) for part in zip(*parts, strict=True)]


class Source(Protocol):
    """What is trained and evaluated on.

    Attributes:
        classes: Number of classes; 0 for regression.
        examples: Number of training examples.
    """

    @property
    def classes(self) -> int:
        """See above."""

    @property
    def examples(self) -> int:
        """See above."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in an epoch; the incomplete last one is left out, as in the paper.

        Raises:
            UserError: The training set is smaller than one batch.
        """

    def train_batches(
        self, epoch: int, batch_size: int, first: int = 0, process: Solo = ALONE
    ) -> Iterator[Batch]:
        """A process's part of the shuffled training batches of an epoch.

        Args:
            epoch: With the seed, decides the batches, for any number of processes.
            batch_size: Images of a whole batch, over all processes.
            first: Number of the batch to begin with.
            process: Whose part.
        """

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All training examples once, in an order that is always the same."""

    def with_teacher_logits(self, logits: numpy.ndarray) -> "Source":
        """Return the same data, whose training batches carry a teacher's logits.

        Args:
            logits: (examples, classes), in the order of :meth:`in_order`.
        """

    def test_batches(self, *, process: Solo = ALONE) -> Iterator[Batch]:
        """A process's part of the test set, in order.

        All processes get equally many batches, of which some may be empty.
        """


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """See :meth:`Source.steps_per_epoch`."""
    steps = examples // batch_size
    if steps == 0:
        raise UserError(f"batch_size {batch_size} exceeds the training set's {examples}")
    return steps


def order(seed: int, epoch: int, examples: int) -> Tensor:
    """The order of the examples in an epoch: a permutation that seed and epoch decide."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(examples, generator=generator)


@dataclass(frozen=True)
class Data:
    """A data set that fits in memory, split in two (a :class:`Source`).

    Attributes:
        train_inputs, train_targets: What is trained on.
        test_inputs, test_targets: What is evaluated on, each example once.
        classes: Number of classes; 0 for regression.
        seed: With the epoch, decides the order of the training set.
        teacher_logits: (examples, classes), the teacher's on the training set, where they are kept.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int
    seed: int
    teacher_logits: Tensor | None = None

    @property
    def examples(self) -> int:
        """See :class:`Source`."""
        return len(self.train_inputs)

    def steps_per_epoch(self, batch_size: int) -> int:
        """See :meth:`Source.steps_per_epoch`."""
        return steps_per_epoch(len(self.train_inputs), batch_size)

    def to(self, device: torch.device) -> "Data":
        """The same data on a device."""
        parts = ("train_inputs", "train_targets", "test_inputs", "test_targets")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})

    def train_batches(
        self, epoch: int, batch_size: int, first: int = 0, process: Solo = ALONE
    ) -> Iterator[Batch]:
        """See :meth:`Source.train_batches`."""
        shuffled = order(self.seed, epoch, len(self.train_inputs)).to(self.train_inputs.device)
        part = process.part(batch_size)
        for step in range(first, self.steps_per_epoch(batch_size)):
            chosen = shuffled[step * batch_size : (step + 1) * batch_size][part]
            kept = None if self.teacher_logits is None else self.teacher_logits[chosen]
            yield Batch(self.train_inputs[chosen], self.train_targets[chosen], kept)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """See :meth:`Source.in_order`."""
        parts = (self.train_inputs.split(batch_size), self.train_targets.split(batch_size))
        yield from map(Batch, *parts)

    def with_teacher_logits(self, logits: numpy.ndarray) -> "Data":
        """See :meth:`Source.with_teacher_logits`."""
        given = torch.from_numpy(logits).to(self.train_targets.device)
        return replace(self, teacher_logits=given)

    def test_batches(self, batch_size: int = 300, process: Solo = ALONE) -> Iterator[Batch]:
        """A process's part of the test set, in order.

        Args:
            batch_size: The most images in one of a process's batches.
            process: Whose part; all processes get equally many batches, of which some may be empty.
        """
        together = batch_size * process.count
        for inputs, targets in zip(
            self.test_inputs.split(together), self.test_targets.split(together), strict=True
        ):
            part = process.part(len(inputs))
            yield Batch(inputs[part], targets[part])


def until(stop: StopRequest, batches: Iterable[Batch], process: Solo = ALONE) -> Iterator[Batch]:
    """Batches that aren't empty, until a stop is requested of any process.

    Args:
        stop: The request.
        batches: As many in every process.
        process: This process.

    Raises:
        Interrupted: A stop is requested.
    """
    for batch in batches:
        cause, _ = process.agree(stop.cause, save=False)
        if cause is not None:
            raise Interrupted(cause)
        if len(batch.inputs):
            yield batch


def describe(dataset: str, model: str, seed: int) -> DataFacts:
    """Describe a data set that comes with the package; its fingerprint covers all numbers.

    Args:
        dataset: The data set.
        model: As of :func:`load`.
        seed: As of :func:`load`.
    """
    data = load(dataset, model, seed)
    names = [str(number) for number in range(data.classes)]
    splits = {
        "train": (data.train_inputs, data.train_targets),
        "val": (data.test_inputs, data.test_targets),
    }
    whole = hashlib.sha256()
    fingerprints, counts = {}, {}
    for split, (inputs, targets) in splits.items():
        numbers = [part.contiguous().numpy().tobytes() for part in (inputs, targets)]
        own = hashlib.sha256()
        for each in numbers:
            whole.update(each)
            own.update(each)
        fingerprints[split] = f"sha256:{own.hexdigest()}"
        by_class = targets.bincount(minlength=data.classes).tolist() if data.classes else []
        counts[split] = by_class
    return DataFacts(
        name=dataset,
        classes=data.classes,
        class_names=names,
        class_digest=digest_of(names),
        images={split: len(inputs) for split, (inputs, _) in splits.items()},
        images_by_class=counts,
        examples=sum(len(inputs) for inputs, _ in splits.values()),
        covers=dict.fromkeys(splits, "contents"),
        fingerprints=fingerprints,
        fingerprint=f"sha256:{whole.hexdigest()}",
    )


def load(dataset: str, model: str, seed: int) -> Data:
    """Load a data set that comes with the package.

    Args:
        dataset: Its name.
        model: The model's name; the toy regression has as many inputs as the model has weights.
        seed: Decides split and order.

    Raises:
        UserError: Unknown, or damaged.
    """
    if dataset not in _LOADERS:
        raise UserError(f"unknown dataset '{dataset}'; allowed: {', '.join(_LOADERS)}")
    return _LOADERS[dataset](model, seed)


def _digits(model: str, seed: int) -> Data:
    """scikit-learn's digits: 1,797 8 × 8 images, split 897 / 900 by class anew for each seed.

    Grey values 0 to 16 are standardized by mean and deviation over all images and pixels.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    try:
        digits = load_digits()
    except OSError as error:
        raise UserError(
            f"the digits data set is missing from scikit-learn ({error}); reinstall scikit-learn"
        ) from None
    images = torch.from_numpy(digits.images).float().unsqueeze(1)
    images = (images - _DIGITS_MEAN) / _DIGITS_DEVIATION
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=900, stratify=labels.numpy(), random_state=seed
    )
    return Data(images[train], labels[train], images[test], labels[test], classes=10, seed=seed)


def _toy_regression(model: str, seed: int) -> Data:
    """Y = w*·x + noise (σ = 0.5) for a random w*, 960 training and 960 noise-free test examples."""
    from ofq.training.models import toy_weights

    generator = torch.Generator().manual_seed(seed)
    count = toy_weights(model)
    target = torch.randn(count, 1, generator=generator)
    inputs = torch.randn(1920, count, generator=generator)
    clean = inputs @ target
    noisy = clean + 0.5 * torch.randn(1920, 1, generator=generator)
    return Data(inputs[:960], noisy[:960], inputs[960:], clean[960:], classes=0, seed=seed)


_LOADERS: dict[str, Callable[[str, int], Data]] = {
    "digits": _digits,
    "toy_regression": _toy_regression,
}
