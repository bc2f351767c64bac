"""Data sets of image files, loaded as needed, in an order that seed and epoch decide."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy
import torch
from torch import Tensor

from ofq.config import Run, Workspace
from ofq.config.datasets import Dataset, Place, Unreadable
from ofq.config.images import Images
from ofq.training.data.augmentation import (
    ModelArgs,
    evaluation_transform,
    mix,
    randomness_of,
    training_transform,
)
from ofq.training.data.decoding import Decoder, Plain, decoder
from ofq.training.data.loading import Key, Loaded, Samples, load
from ofq.training.data.readers import open_split
from ofq.training.data.source import Batch, order, steps_per_epoch
from ofq.training.distributed import SINGLE_PROCESS, SingleProcess

_TEST_BATCH = 256
_MIXING = 0x6D6978  # separates the random numbers of mixing from those of an image


@dataclass(frozen=True)
class ImageSource:
    """Location and loading of a data set of image files; site-specific, doesn't affect results.

    Attributes:
        place: Location of the data set.
        workers: Number of loading processes per device.
        unreadable: Policy for an image that can't be decoded.
        decoder: Decoder of training images; evaluation images are always decoded by Pillow.
        on_unreadable: Called once with the name of each such image, at the end of an epoch.
    """

    place: Place
    workers: int = 2
    unreadable: Unreadable = "fail"
    decoder: Decoder = field(default_factory=Plain)
    on_unreadable: Callable[[str], None] = lambda name: None


@dataclass(frozen=True)
class ImageData:
    """A data set of image files, split in two (a :class:`~ofq.training.data.source.Source`).

    An augmented image is a function of seed, epoch and image, so it is independent of the number of
    devices and loading processes, and equal after an interruption.

    Args:
        train, test: The preprocessed images of each split.
        images: Their preprocessing; used here for mixing and repeats.
        classes: Number of classes.
        seed: Decides, with the epoch, order and augmentation.
        files: Location and loading of the images.
        device: Device of the batches.
        teacher_logits: (images, classes), cached teacher logits on the training set; None without.
        reported: Names of unreadable images that were reported.
        unreported: Names of unreadable images since the last report.
    """

    train: Samples
    test: Samples
    images: Images
    classes: int
    seed: int
    files: ImageSource
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    teacher_logits: numpy.ndarray | None = None
    reported: set[str] = field(default_factory=set)
    unreported: list[str] = field(default_factory=list)

    @property
    def examples(self) -> int:
        """Number of training images."""
        return len(self.train.split)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches in an epoch."""
        return steps_per_epoch(len(self.train.split), batch_size)

    def to(self, device: torch.device) -> "ImageData":
        """Return the data with batches on a device."""
        return replace(self, device=device)

    def with_teacher_logits(self, logits: numpy.ndarray) -> "ImageData":
        """Return the data with training batches that include teacher logits."""
        return replace(self, teacher_logits=logits)

    def train_batches(
        self, epoch: int, batch_size: int, first: int = 0, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """Yield this rank's part of the shuffled and augmented training batches of an epoch."""
        steps = range(first, self.steps_per_epoch(batch_size))
        shuffled = order(self.seed, epoch, len(self.train.split))
        part = group.part(batch_size)
        keys = (self._keys(shuffled, epoch, batch_size, step)[part] for step in steps)
        for step, batch in zip(steps, self._load(self.train, keys), strict=True):
            yield self._trained_on(batch, epoch, step)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all training images once, in their split's order."""
        for batch in self._load(self.train, self._every(self.train, batch_size)):
            yield self._moved(batch)

    def test_batches(
        self, batch_size: int = _TEST_BATCH, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """Yield this rank's part of the test set, in order; then report unreadable images."""
        together = self._every(self.test, batch_size * group.count)
        for batch in self._load(self.test, (keys[group.part(len(keys))] for keys in together)):
            yield self._moved(batch)
        self._report(group)

    def _keys(self, shuffled: Tensor, epoch: int, batch_size: int, step: int) -> list[Key]:
        """Return the keys of a whole batch, with the copies of an image far apart.

        All first copies come before all second ones, so that no image is mixed with its copy.
        """
        times = self.images.repeats
        places = range(step * batch_size, (step + 1) * batch_size)
        indices = shuffled[torch.tensor(places) // times].tolist()
        keys = [Key(i, self.seed, epoch, p % times) for i, p in zip(indices, places, strict=True)]
        return sorted(keys, key=lambda key: key.copy)

    def _every(self, samples: Samples, batch_size: int) -> Iterator[list[Key]]:
        """Yield the keys of all images of a split, in its order."""
        count = len(samples.split)
        for first in range(0, count, batch_size):
            chosen = range(first, min(first + batch_size, count))
            yield [Key(number, self.seed, epoch=0) for number in chosen]

    def _load(self, samples: Samples, keys: Iterator[Sequence[Key]]) -> Iterator[Loaded]:
        for batch in load(samples, keys, self.files.workers, self.device.type == "cuda"):
            self.unreported.extend(batch.unreadable)
            yield batch

    def _moved(self, batch: Loaded) -> Batch:
        return Batch(
            batch.images.to(self.device, non_blocking=True),
            batch.labels.to(self.device, non_blocking=True),
        )

    def _trained_on(self, batch: Loaded, epoch: int, step: int) -> Batch:
        moved = self._moved(batch)
        if self.teacher_logits is not None:  # excludes mixing
            logits = torch.from_numpy(self.teacher_logits[batch.numbers.numpy()]).to(self.device)
            return moved._replace(teacher_logits=logits)
        if self.images.mixing is None:
            return moved
        with randomness_of(self.seed, epoch, step, _MIXING):
            return Batch(*mix(moved.inputs, moved.labels, self.classes, self.images.mixing))

    def _report(self, group: SingleProcess) -> None:
        """Report the unreadable images that any rank met for the first time."""
        for name in sorted(
            {name for names in group.all_gather_object(self.unreported) for name in names}
        ):
            if name not in self.reported:
                self.reported.add(name)
                self.files.on_unreadable(name)
        self.unreported.clear()


def files_of(
    workspace: Workspace, run: Run, on_unreadable: Callable[[str], None] = lambda name: None
) -> ImageSource | None:
    """Return location and loading of a run's image files; None for in-memory data.

    Args:
        workspace: The checkout.
        run: The run.
        on_unreadable: Called with the names of unreadable images.

    Raises:
        UserError: The site config doesn't locate them, or the loader's package isn't installed.
    """
    if not run.config.data.of_files:
        return None
    place = workspace.data_place(run.config.dataset)
    return ImageSource(
        place,
        run.resources.workers,
        workspace.site.unreadable,
        decoder(run.resources.loader),
        on_unreadable,
    )


def open_images(
    files: ImageSource,
    images: Images,
    model: str,
    seed: int,
    args: ModelArgs | None = None,
    about: Dataset | None = None,
) -> ImageData:
    """Open a data set of image files for training.

    Args:
        files: Its location and loading.
        images: Preprocessing of the images.
        model: Name of the timm model, by which timm knows size, mean and standard deviation.
        seed: Decides order and augmentation.
        args: Arguments of the model's constructor.
        about: The data set; None for mean and standard deviation of the model.

    Raises:
        UserError: A split is missing, or timm doesn't know the model's image size and
            normalization.
    """
    train, test = open_split(files.place, "train"), open_split(files.place, "val")
    classes = len(train.classes)
    training = training_transform(model, classes, images, args, about)
    evaluation = evaluation_transform(model, classes, images, args, about)
    return ImageData(
        Samples(train, training, files.unreadable, replace=True, decoder=files.decoder),
        Samples(test, evaluation, files.unreadable, replace=False),
        images,
        classes,
        seed,
        files,
    )
