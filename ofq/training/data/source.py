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
from ofq.registry import Registry
from ofq.stopping import Interrupted, StopRequest
from ofq.training.distributed import SINGLE_PROCESS, SingleProcess

_DIGITS_MEAN, _DIGITS_DEVIATION, _DIGITS_WHITE = 4.884, 6.017, 16


class Batch(NamedTuple):
    """Batch of examples.

    Attributes:
        inputs: (B, ...), such as images (B, channels, H, W).
        labels: Classes (B,), shares of the classes (B, classes), or numbers (B, outputs).
        teacher_logits: (B, classes); None without a teacher, or before it ran.
    """

    inputs: Tensor
    labels: Tensor
    teacher_logits: Tensor | None = None

    def chunk(self, count: int) -> "list[Batch]":
        """Split the batch into ``count`` batches of equal size."""
        parts = (t.chunk(count) if t is not None else (None,) * count for t in self)
        return [Batch(*part) for part in zip(*parts, strict=True)]


class Source(Protocol):
    """Data set for training and evaluation.

    Attributes:
        classes: Number of classes; 0 for regression.
        examples: Number of training examples.
    """

    @property
    def classes(self) -> int:
        """Number of classes; 0 for regression."""

    @property
    def examples(self) -> int:
        """Number of training examples."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches in an epoch; an incomplete one is dropped (paper).

        Raises:
            UserError: The training set is smaller than one batch.
        """

    def train_batches(
        self, epoch: int, batch_size: int, first: int = 0, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """Yield this rank's part of the shuffled training batches of an epoch.

        Args:
            epoch: Decides, with the seed, the batches, for any number of ranks.
            batch_size: Images of a whole batch, over all ranks.
            first: Number of the first batch.
            group: Process group of the rank.
        """

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all training examples once, in a fixed order."""

    def with_teacher_logits(self, logits: numpy.ndarray) -> "Source":
        """Return the data with training batches that include teacher logits.

        Args:
            logits: (examples, classes), in the order of :meth:`in_order`.
        """

    def test_batches(self, *, group: SingleProcess = SINGLE_PROCESS) -> Iterator[Batch]:
        """Yield this rank's part of the test set, in order.

        All ranks get the same number of batches, some of which may be empty.
        """


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of full batches in an epoch.

    Raises:
        UserError: The training set is smaller than one batch.
    """
    steps = examples // batch_size
    if steps == 0:
        raise UserError(f"batch_size {batch_size} exceeds the training set's {examples}")
    return steps


def order(seed: int, epoch: int, examples: int) -> Tensor:
    """Return the order of the examples in an epoch, a permutation by seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(examples, generator=generator)


@dataclass(frozen=True)
class Data:
    """A data set that fits in memory, split in two.

    Attributes:
        train_inputs, train_targets: The training examples.
        test_inputs, test_targets: The test examples.
        classes: Number of classes; 0 for regression.
        seed: Decides, with the epoch, the order of the training set.
        teacher_logits: (examples, classes), cached teacher logits on the training set; None
            without.
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
        """Number of training examples."""
        return len(self.train_inputs)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches in an epoch."""
        return steps_per_epoch(len(self.train_inputs), batch_size)

    def part(self, about: Dataset) -> "Data":
        """Return the part of the examples that a data set consists of.

        Args:
            about: The data set; its ``skip_images``, ``train_images``, ``test_images`` and
                ``held_out`` count.

        Raises:
            UserError: There are fewer examples.
        """
        end = self.examples - (about.held_out or 0)
        stop = about.skip_images + about.train_images if about.train_images else end
        if not about.skip_images < stop <= end:
            asked = ("skip_images", "train_images", "held_out")
            given = ", ".join(f"{key} {n}" for key in asked if (n := getattr(about, key)))
            raise UserError(f"{given}: it has {self.examples} training images")
        if (about.test_images or 0) > len(self.test_inputs):
            raise UserError(
                f"test_images {about.test_images}: it has {len(self.test_inputs)} test images"
            )
        train = slice(about.skip_images, stop)
        test_inputs, test_targets = self.test_inputs, self.test_targets
        if about.held_out:
            test_inputs, test_targets = self.train_inputs[end:], self.train_targets[end:]
        return replace(
            self,
            train_inputs=self.train_inputs[train],
            train_targets=self.train_targets[train],
            test_inputs=test_inputs[: about.test_images],
            test_targets=test_targets[: about.test_images],
        )

    def to(self, device: torch.device) -> "Data":
        """Return the data on a device."""
        parts = ("train_inputs", "train_targets", "test_inputs", "test_targets")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})

    def train_batches(
        self, epoch: int, batch_size: int, first: int = 0, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """Yield this rank's part of the shuffled training batches of an epoch."""
        shuffled = order(self.seed, epoch, len(self.train_inputs)).to(self.train_inputs.device)
        part = group.part(batch_size)
        for step in range(first, self.steps_per_epoch(batch_size)):
            chosen = shuffled[step * batch_size : (step + 1) * batch_size][part]
            logits = None if self.teacher_logits is None else self.teacher_logits[chosen]
            yield Batch(self.train_inputs[chosen], self.train_targets[chosen], logits)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all training examples once, in their stored order."""
        parts = (self.train_inputs.split(batch_size), self.train_targets.split(batch_size))
        yield from map(Batch, *parts)

    def with_teacher_logits(self, logits: numpy.ndarray) -> "Data":
        """Return the data with training batches that include teacher logits."""
        on_device = torch.from_numpy(logits).to(self.train_targets.device)
        return replace(self, teacher_logits=on_device)

    def test_batches(
        self, batch_size: int = 300, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """Yield this rank's part of the test set, in order.

        Args:
            batch_size: Most examples in one of a rank's batches.
            group: Process group of the rank; all ranks get the same number of batches, some of
                which may be empty.
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
    """Yield the batches that aren't empty, until a stop is requested of any rank.

    Args:
        stop: This rank's stop request.
        batches: The batches; all ranks must have the same number.
        group: Process group of the rank.

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
    """Return facts of in-memory data; the fingerprint covers all numbers.

    Args:
        name: Name of the data set.
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
    """Arguments of a registered function that returns a data set.

    Attributes:
        about: Content of the data set's file.
        model: Name of the model that gets the data.
        seed: The run's seed, which may decide the split.
        place: Location of the data set, if given.
    """

    about: Dataset
    model: str
    seed: int
    place: Path | None = None


sources: Registry[Callable[[DataRequest], Data]] = Registry("data set's source")
_Function = TypeVar("_Function", bound=Callable[[DataRequest], Data])


def register_dataset(name: str) -> Callable[[_Function], _Function]:
    """Return a decorator that registers a function as the ``source`` of an in-memory data set.

    The function takes a :class:`DataRequest` and returns :class:`Data`; equal requests must give
    equal data.

    Raises:
        UserError: The name is registered for another function.
    """
    if name == "images":  # which isn't in the registry: such data are read, not returned
        raise UserError("another data set's source is registered as 'images'")
    return sources.register(name)


def load(
    name: str, model: str, seed: int, about: Dataset | None = None, place: Path | None = None
) -> Data:
    """Load a data set that fits in memory.

    Args:
        name: Name of the data set.
        model: Name of the model that gets the data; the toy regression has as many inputs as the
            model has weights.
        seed: The run's seed, which may decide the split.
        about: Description of the data set; None for one that comes with the package.
        place: Location of the data set, if given.

    Raises:
        UserError: There is no such data set, its source isn't registered, or it is damaged.
    """
    if about is None and name not in PACKAGED:
        raise UserError(f"unknown dataset '{name}'; allowed: {', '.join(PACKAGED)}")
    about = about or PACKAGED[name]
    if about.module is not None:
        import_module(about.module, f"data set '{name}'")
    if about.source not in sources:
        allowed = ", ".join(sorted(sources))
        raise UserError(
            f"data set '{name}': no source '{about.source}' is registered; allowed: "
            f"images, {allowed}"
        )
    request = DataRequest(about, model, seed, place)
    data = sources[about.source](request)
    if not isinstance(data, Data):
        kind = type(data).__name__
        raise UserError(
            f"data set '{name}': its source '{about.source}' returned a {kind}; expected ofq.Data"
        )
    if about.classes is not None and data.classes != about.classes:
        raise UserError(
            f"data set '{name}' has {data.classes} classes; its file says {about.classes}"
        )
    try:
        return data.part(about)
    except UserError as error:
        raise UserError(f"data set '{name}': {error}") from None


def normalization(about: Dataset) -> dict[str, tuple[float, ...]]:
    """Return ``mean`` and ``std`` of images in memory, of values 0 to 1; empty where unknown."""
    if about.source == "digits":
        return {
            "mean": (_DIGITS_MEAN / _DIGITS_WHITE,),
            "std": (_DIGITS_DEVIATION / _DIGITS_WHITE,),
        }
    if about.source == "idx":
        return {"mean": about.mean or (0.0,), "std": about.std or (1.0,)}
    return {}


@register_dataset("digits")
def _digits(request: DataRequest) -> Data:
    """Load scikit-learn's digits: 1,797 8 × 8 images, split 897 / 900, stratified, by the seed.

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
    """Draw 960 examples of y = w*·x + noise (σ = 0.5) for a random w*, and 960 noise-free ones.

    Those with noise are for training, the others for evaluation.
    """
    from ofq.training.models import toy_weights

    generator = torch.Generator().manual_seed(request.seed)
    count = toy_weights(request.model)
    target = torch.randn(count, 1, generator=generator)
    inputs = torch.randn(1920, count, generator=generator)
    clean = inputs @ target
    noisy = clean + 0.5 * torch.randn(1920, 1, generator=generator)
    return Data(inputs[:960], noisy[:960], inputs[960:], clean[960:], classes=0, seed=request.seed)


_IDX = {  # files of a split, as MNIST and its successors name them
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@register_dataset("idx")
def _idx(request: DataRequest) -> Data:
    """Load grey images and labels of (gzipped) IDX files; normalize by the data set's mean, std."""
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
        uint8, of the shape in the file's header.

    Raises:
        UserError: The file is missing or damaged.
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
