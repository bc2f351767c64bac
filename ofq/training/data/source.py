"""Data sets as batches whose order is a function of seed and epoch."""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy
import torch
from torch import Tensor

from ofq.config.datasets import PACKAGED, DataFacts, Dataset, digest_of
from ofq.config.modules import import_module
from ofq.errors import UserError
from ofq.stopping import Interrupted, StopRequest
from ofq.training.distributed import SINGLE_PROCESS, SingleProcess

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
        self, epoch: int, batch_size: int, first: int = 0, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """A process's part of the shuffled training batches of an epoch.

        Args:
            epoch: With the seed, decides the batches, for any number of processes.
            batch_size: Images of a whole batch, over all processes.
            first: Number of the batch to begin with.
            group: Whose part.
        """

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All training examples once, in an order that is always the same."""

    def with_teacher_logits(self, logits: numpy.ndarray) -> "Source":
        """Return the same data, whose training batches carry a teacher's logits.

        Args:
            logits: (examples, classes), in the order of :meth:`in_order`.
        """

    def test_batches(self, *, group: SingleProcess = SINGLE_PROCESS) -> Iterator[Batch]:
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
        self, epoch: int, batch_size: int, first: int = 0, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """See :meth:`Source.train_batches`."""
        shuffled = order(self.seed, epoch, len(self.train_inputs)).to(self.train_inputs.device)
        part = group.part(batch_size)
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

    def test_batches(
        self, batch_size: int = 300, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """A process's part of the test set, in order.

        Args:
            batch_size: The most images in one of a process's batches.
            group: Whose part; all processes get equally many batches, of which some may be empty.
        """
        together = batch_size * group.count
        for inputs, targets in zip(
            self.test_inputs.split(together), self.test_targets.split(together), strict=True
        ):
            part = group.part(len(inputs))
            yield Batch(inputs[part], targets[part])


def until(
    stop: StopRequest, batches: Iterable[Batch], group: SingleProcess = SINGLE_PROCESS
) -> Iterator[Batch]:
    """Batches that aren't empty, until a stop is requested of any process.

    Args:
        stop: The request.
        batches: As many in every process.
        group: This process.

    Raises:
        Interrupted: A stop is requested.
    """
    for batch in batches:
        cause, _ = group.agree(stop.cause, save=False)
        if cause is not None:
            raise Interrupted(cause)
        if len(batch.inputs):
            yield batch


def describe(name: str, data: Data) -> DataFacts:
    """Describe data in memory; the fingerprint covers all numbers.

    Args:
        name: The data set's.
        data: Its data.
    """
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
        name=name,
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


@dataclass(frozen=True)
class DataRequest:
    """What a function that gives a data set is asked for.

    Attributes:
        about: What the data set's file says.
        model: Name of the model that gets the data.
        seed: The run's seed, which may decide the split.
        place: Where the data set lies, if that is said.
    """

    about: Dataset
    model: str
    seed: int
    place: Path | None = None


_SOURCES: dict[str, Callable[[DataRequest], Data]] = {}
_Function = TypeVar("_Function", bound=Callable[[DataRequest], Data])


def register_dataset(name: str) -> Callable[[_Function], _Function]:
    """Function decorator that makes data in memory available as the ``source`` of a data set.

    The function takes a :class:`DataRequest` and returns :class:`Data`, the same each time.

    Raises:
        UserError: The name is taken by another function.
    """

    def register(function: _Function) -> _Function:
        known = _SOURCES.get(name)
        if name == "images" or (known and _named(known) != _named(function)):
            raise UserError(f"a data set's source named '{name}' is already registered")
        _SOURCES[name] = function
        return function

    return register


def _named(function: Callable[[DataRequest], Data]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def load(
    name: str, model: str, seed: int, about: Dataset | None = None, place: Path | None = None
) -> Data:
    """Load a data set that fits in memory.

    Args:
        name: The data set's.
        model: Name of the model that gets the data; the toy regression has as many inputs as the
            model has weights.
        seed: The run's seed, which may decide the split.
        about: What the data set is; None for one that comes with the package.
        place: Where it lies, if that is said.

    Raises:
        UserError: There is no such data set, nothing registers its source, or it is damaged.
    """
    if about is None and name not in PACKAGED:
        raise UserError(f"unknown dataset '{name}'; allowed: {', '.join(PACKAGED)}")
    about = about or PACKAGED[name]
    if about.module is not None:
        import_module(about.module, f"data set '{name}'")
    if about.source not in _SOURCES:
        allowed = ", ".join(sorted(_SOURCES))
        raise UserError(
            f"data set '{name}': no source '{about.source}' is registered; allowed: "
            f"images, {allowed}"
        )
    request = DataRequest(about, model, seed, place)
    data = _SOURCES[about.source](request)
    if not isinstance(data, Data):
        kind = type(data).__name__
        raise UserError(
            f"data set '{name}': its source '{about.source}' returned a {kind}; expected ofq.Data"
        )
    if about.classes is not None and data.classes != about.classes:
        raise UserError(
            f"data set '{name}' has {data.classes} classes; its file says {about.classes}"
        )
    return data


@register_dataset("digits")
def _digits(request: DataRequest) -> Data:
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
        torch.arange(len(labels)).numpy(),
        test_size=900,
        stratify=labels.numpy(),
        random_state=request.seed,
    )
    return Data(
        images[train], labels[train], images[test], labels[test], classes=10, seed=request.seed
    )


@register_dataset("toy_regression")
def _toy_regression(request: DataRequest) -> Data:
    """Y = w*·x + noise (σ = 0.5) for a random w*, 960 training and 960 noise-free test examples."""
    from ofq.training.models import toy_weights

    generator = torch.Generator().manual_seed(request.seed)
    count = toy_weights(request.model)
    target = torch.randn(count, 1, generator=generator)
    inputs = torch.randn(1920, count, generator=generator)
    clean = inputs @ target
    noisy = clean + 0.5 * torch.randn(1920, 1, generator=generator)
    return Data(inputs[:960], noisy[:960], inputs[960:], clean[960:], classes=0, seed=request.seed)


_IDX = {  # name of a split's files, as MNIST and its successors have them
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@register_dataset("idx")
def _idx(request: DataRequest) -> Data:
    """Grey images and labels of (gzipped) IDX files; normalized by the data set's mean and std."""
    if request.place is None:
        raise UserError("data of source 'idx' need a place")
    arrays = [read_idx(request.place / name) for names in _IDX.values() for name in names]
    mean, std = request.about.mean or (0.0,), request.about.std or (1.0,)
    if len(mean) != 1:
        raise UserError(f"mean is of {len(mean)} channels, but images of IDX files have one")
    images = [
        torch.from_numpy(pixels).unsqueeze(1).float().div_(255).sub_(mean[0]).div_(std[0])
        for pixels in arrays[::2]
    ]
    labels = [torch.from_numpy(numbers).long() for numbers in arrays[1::2]]
    for pixels, numbers in zip(images, labels, strict=True):
        if len(pixels) != len(numbers):
            raise UserError(
                f"{request.place}: {len(pixels)} images, but {len(numbers)} labels of a split"
            )
    classes = int(torch.cat(labels).max()) + 1
    return Data(images[0], labels[0], images[1], labels[1], classes=classes, seed=request.seed)


def read_idx(path: Path) -> numpy.ndarray:
    """Read an IDX file of bytes, gzipped (``.gz``) or not.

    Args:
        path: The file, without ``.gz``.

    Returns:
        uint8, of the shape that the file says.

    Raises:
        UserError: It isn't there, or is damaged.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, nor {packed.name}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{packed if packed.exists() else path}: not readable: {error}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UserError(f"{path}: no IDX file of bytes")
    shape = numpy.frombuffer(content, ">u4", count=min(content[3], len(content) // 4 - 1), offset=4)
    start = 4 + 4 * content[3]
    if len(shape) != content[3] or len(content) - start != shape.prod(dtype=object):
        raise UserError(f"{path}: damaged: it doesn't hold as many bytes as it says")
    return numpy.frombuffer(content, numpy.uint8, offset=start).reshape(shape.tolist()).copy()
