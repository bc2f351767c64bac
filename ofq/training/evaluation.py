"""Top-1 and top-5 of a model on a labelled data set, without training."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from timm.data import create_dataset, create_transform, resolve_model_data_config
from timm.data.readers.reader import Reader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ofq.errors import TryAgain, UserError
from ofq.interruption import SIGNALS, StopRequest
from ofq.progress import counted
from ofq.training import data, models
from ofq.training.data import Batch
from ofq.training.devices import ALONE, Solo
from ofq.training.objective import Classification

Transform = Callable[[Image.Image], Tensor]

BATCH_SIZE = 64
_WORKERS = 2


@dataclass(frozen=True)
class LabelledImages:
    """What a model is evaluated on.

    Attributes:
        batches: Images (B, channels, H, W) and labels (B,), each image once.
        images: Number of images in all.
        classes: Number of classes.
    """

    batches: Iterable[Batch]
    images: int
    classes: int


def evaluate(
    model: nn.Module,
    images: LabelledImages,
    console: Console,
    stop: StopRequest,
    process: Solo = ALONE,
) -> tuple[dict[str, float], NDArray[np.bool_]]:
    """Measure a model, and show how far it is.

    Args:
        model: The model.
        images: What it is measured on.
        console: Where to show progress.
        stop: Looked at after every batch.
        process: The process, whose device is used.

    Returns:
        ``top1`` and ``top5`` in percent (``top5`` with five classes or more), ``loss``, and the
        counts ``correct`` and ``images``; independent of the batch size but for rounding. And
        which images are right, (images,) in their order.

    Raises:
        UserError: An image can't be read.
        Interrupted: A stop was requested.
        TryAgain: A process that loads images was killed.
    """
    moved = (
        (inputs.to(process.device), labels.to(process.device)) for inputs, labels in images.batches
    )
    batches = counted(console, data.until(stop, moved), images.images)
    with _workers_watched():
        objective = Classification()
        measures = objective.evaluate(model.to(process.device), batches, process)
    assert objective.correct is not None
    return measures, objective.correct


def digits(model: str, seed: int, batch_size: int = BATCH_SIZE) -> LabelledImages:
    """The 900 test images of scikit-learn's digits, of a seed's split."""
    split = data.load("digits", model, seed)
    batches = split.test_batches(batch_size)
    return LabelledImages(batches, len(split.test_targets), split.classes)


def image_folder(folder: Path, model: str, batch_size: int = BATCH_SIZE) -> LabelledImages:
    """The validation split of a folder with a subfolder of images per class.

    Labels count the subfolders in natural order, as timm's and torchvision's readers do. Images are
    resized, cropped and normalized as timm says for the model.

    Args:
        folder: It, or its subfolder ``val`` or ``validation``, holds the classes.
        model: The timm model's name.
        batch_size: Images per batch; the last batch may be smaller.

    Raises:
        UserError: The folder is missing or holds no validation images, or timm doesn't know the
            model's image size and normalization.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected val/CLASS/IMAGE below it")
    try:
        reader = create_dataset("", root=str(folder), split="validation").reader
    except RuntimeError as error:
        raise UserError(f"{folder}: {error}") from None
    if Path(reader.root) == folder and (folder / "train").is_dir():
        raise UserError(f"{folder}: has train/, but neither val/ nor validation/ to evaluate on")
    classes = len(reader.class_to_idx)
    loader = DataLoader(
        _Images(reader, _transform(model, classes)),
        batch_size,
        num_workers=_WORKERS,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    return LabelledImages(_mended(loader), len(reader), classes)


def _transform(name: str, classes: int) -> Transform:
    model = models.build(name, classes)
    if not getattr(model, "pretrained_cfg", None):
        raise UserError(f"timm says neither image size nor normalization of {name}")
    return create_transform(**resolve_model_data_config(model), is_training=False)


class _Images(Dataset[tuple[Tensor, int]]):
    """The images of one of timm's readers.

    In place of timm's own data set, which puts the next image where one can't be read: every image
    is to be counted once.
    """

    def __init__(self, reader: Reader, transform: Transform) -> None:
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.reader[index]
        try:
            with file:
                image = Image.open(file).convert("RGB")
        except (OSError, UnidentifiedImageError):
            name = self.reader.filename(index, absolute=True)
            raise UserError(f"{name}: not a readable image") from None
        return self.transform(image), label


@contextmanager
def _workers_watched() -> Iterator[None]:
    """Tell of a loading process that was killed in a way that a person understands.

    Raises:
        TryAgain: One was; torch raises that anywhere in the main thread.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TryAgain(
            "a process that loads images was killed, perhaps for want of memory"
        ) from None


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to the whole process group must not end loading before the trainer has saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _mended(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[Batch]:
    """The loader's batches; of an error in a worker, the message without the worker's traceback."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
