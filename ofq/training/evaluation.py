"""Evaluation of a model on labelled images, outside training."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from torch import nn

from ofq.config.datasets import Dataset
from ofq.config.images import Images
from ofq.config.stage import Precision
from ofq.runs.progress import counted
from ofq.stopping import StopRequest
from ofq.training.data.augmentation import ModelArgs, evaluation_transform
from ofq.training.data.images import ImageSource
from ofq.training.data.loading import Key, Samples, load, workers_watched
from ofq.training.data.readers import open_split
from ofq.training.data.source import Batch, Data, until
from ofq.training.distributed import SINGLE_PROCESS, SingleProcess
from ofq.training.objective import Classification, Evaluation
from ofq.training.precision import casting

BATCH_SIZE = 64


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images for an evaluation.

    Attributes:
        batches: Images (B, channels, H, W) and labels (B,), each image once; can be iterated
            repeatedly.
        images: Total number of images.
        classes: Number of classes.
    """

    batches: Iterable[Batch]
    images: int
    classes: int


@dataclass(frozen=True)
class _Anew:
    """Iterable that calls ``make`` for each iteration."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def evaluate(
    model: nn.Module,
    images: LabelledImages,
    console: Console,
    stop: StopRequest,
    group: SingleProcess = SINGLE_PROCESS,
    precision: Precision = "fp32",
) -> Evaluation:
    """Evaluate a model, and show progress.

    Args:
        model: The model.
        images: The images.
        console: Shows progress.
        stop: Stop request, checked after every batch.
        group: Process group, whose device is used.
        precision: Precision of products; it decides the codes of values on a threshold.

    Returns:
        Measures, independent of the batch size up to rounding, and which images are right.

    Raises:
        UserError: An image can't be read.
        Interrupted: A stop was requested.
        TryAgain: A process that loads images was killed.
    """
    moved = (
        Batch(batch.inputs.to(group.device), batch.labels.to(group.device))
        for batch in images.batches
    )
    batches = counted(console, until(stop, moved), images.images)
    with workers_watched(), casting(precision, group.device):
        return Classification().evaluate(model.to(group.device), batches, group)


def in_memory(data: Data, batch_size: int = BATCH_SIZE) -> LabelledImages:
    """Return the test images of data in memory."""
    batches = partial(data.test_batches, batch_size)
    return LabelledImages(_Anew(batches), len(data.test_targets), data.classes)


def image_files(
    files: ImageSource,
    model: str,
    images: Images | None = None,
    batch_size: int = BATCH_SIZE,
    args: ModelArgs | None = None,
    about: Dataset | None = None,
) -> LabelledImages:
    """Open the validation split of a data set of image files.

    Labels number the classes in natural order, as timm's readers do. Images are resized, cropped
    and normalized.

    Args:
        files: Location and loading of the images; a folder, or its subfolder ``val`` or
            ``validation``, contains the classes.
        model: Name of the timm model.
        images: Crop and interpolation; None for timm's of the model.
        batch_size: Images per batch; the last batch may be smaller.
        args: Arguments of the model's constructor.
        about: The data set; None for mean and standard deviation of the model.

    Raises:
        UserError: There are no validation images, or timm doesn't know the model's image size and
            normalization.
    """
    split = open_split(files.place, "val")
    transform = evaluation_transform(model, len(split.classes), images, args, about)
    samples = Samples(split, transform, files.unreadable, replace=False)
    batches = partial(_batches, samples, files, batch_size)
    return LabelledImages(_Anew(batches), len(split), len(split.classes))


def _batches(samples: Samples, files: ImageSource, batch_size: int) -> Iterator[Batch]:
    keys = [Key(number, seed=0, epoch=0) for number in range(len(samples.split))]
    whole = (keys[first : first + batch_size] for first in range(0, len(keys), batch_size))
    for batch in load(samples, whole, files.workers):
        for name in batch.unreadable:
            files.on_unreadable(name)
        yield Batch(batch.images, batch.labels)
