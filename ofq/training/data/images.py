"""Training data of image files: loaded as needed, in an order that seed and epoch decide."""

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
_MIXING = 0x6D6978  # between the random numbers of mixing and those of an image


@dataclass(frozen=True)
class ImageSource:
    """What a site says of a data set of image files; nothing of it decides a run's numbers.

    Attributes:
        place: Where the data set lies.
        workers: Processes that load images, for each device.
        unreadable: What an image that can't be decoded does.
        decoder: How training images are decoded; evaluation's always by Pillow.
        on_unreadable: Told the name of each such image, once, at the end of an epoch.
    """

    place: Place
    workers: int = 2
    unreadable: Unreadable = "fail"
    decoder: Decoder = field(default_factory=Plain)
    on_unreadable: Callable[[str], None] = lambda name: None


@dataclass(frozen=True)
class ImageData:
    """A data set of image files, split in two (a :class:`~ofq.training.data.source.Source`).

    What an image looks like is a function of seed, epoch and image, and so independent of the
    number of devices and of loading processes, and the same after an interruption.

    Args:
        train, test: The images of either split, made ready.
        images: How; here for mixing and repeats.
        classes: Number of classes.
        seed: With the epoch, decides order and random changes.
        files: Where they come from.
        device: Where batches go.
        teacher_logits: (images, classes), the teacher's on the training set, where they are kept.
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
        """See :class:`~ofq.training.data.source.Source`, as all of these."""
        return len(self.train.split)

    def steps_per_epoch(self, batch_size: int) -> int:
        """See :class:`~ofq.training.data.source.Source`."""
        return steps_per_epoch(len(self.train.split), batch_size)

    def to(self, device: torch.device) -> "ImageData":
        """The same data, whose batches go to a device."""
        return replace(self, device=device)

    def with_teacher_logits(self, logits: numpy.ndarray) -> "ImageData":
        """Return the same data, whose training batches carry a teacher's logits."""
        return replace(self, teacher_logits=logits)

    def train_batches(
        self, epoch: int, batch_size: int, first: int = 0, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """A process's part of the shuffled and augmented training batches of an epoch."""
        steps = range(first, self.steps_per_epoch(batch_size))
        shuffled = order(self.seed, epoch, len(self.train.split))
        part = group.part(batch_size)
        keys = (self._keys(shuffled, epoch, batch_size, step)[part] for step in steps)
        for step, batch in zip(steps, self._load(self.train, keys), strict=True):
            yield self._trained_on(batch, epoch, step)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All training images once, in their split's order."""
        for batch in self._load(self.train, self._every(self.train, batch_size)):
            yield self._moved(batch)

    def test_batches(
        self, batch_size: int = _TEST_BATCH, group: SingleProcess = SINGLE_PROCESS
    ) -> Iterator[Batch]:
        """A process's part of the test set, in order; at its end, names of unreadable images."""
        together = self._every(self.test, batch_size * group.count)
        for batch in self._load(self.test, (keys[group.part(len(keys))] for keys in together)):
            yield self._moved(batch)
        self._tell(group)

    def _keys(self, shuffled: Tensor, epoch: int, batch_size: int, step: int) -> list[Key]:
        """A whole batch; copies of an image, which follow each other in an epoch, are far apart.

        First come all first copies, then all second ones, so that none is mixed with its like.
        """
        times = self.images.repeats
        places = range(step * batch_size, (step + 1) * batch_size)
        indices = shuffled[torch.tensor(places) // times].tolist()
        keys = [Key(i, self.seed, epoch, p % times) for i, p in zip(indices, places, strict=True)]
        return sorted(keys, key=lambda key: key.copy)

    def _every(self, samples: Samples, batch_size: int) -> Iterator[list[Key]]:
        """All images of a split, in its order."""
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
        if self.teacher_logits is not None:  # only for images that aren't mixed
            logits = torch.from_numpy(self.teacher_logits[batch.numbers.numpy()]).to(self.device)
            return moved._replace(teacher_logits=logits)
        if self.images.mixing is None:
            return moved
        with randomness_of(self.seed, epoch, step, _MIXING):
            return Batch(*mix(moved.inputs, moved.labels, self.classes, self.images.mixing))

    def _tell(self, group: SingleProcess) -> None:
        """Name the unreadable images that any process met for the first time."""
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
    """What the site says of a run's image files; None for data that come with the package.

    Args:
        workspace: The checkout.
        run: The run.
        on_unreadable: Told of unreadable images.

    Raises:
        UserError: The site doesn't say where they lie, or what loads them isn't installed.
    """
    if not run.config.data.of_files:
        return None
    place = workspace.data_place(run.config.dataset)
    how = decoder(run.resources.loader)
    return ImageSource(place, run.resources.workers, workspace.site.unreadable, how, on_unreadable)


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
        files: Where it lies, and how it is read.
        images: How images are made ready.
        model: The timm model's name, by which timm knows size, mean and deviation.
        seed: Decides order and random changes.
        args: What the model's constructor gets.
        about: What the data set is; None for size, mean and deviation of the model.

    Raises:
        UserError: A split is missing, or timm knows nothing of the model.
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
