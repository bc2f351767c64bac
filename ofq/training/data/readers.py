"""Labelled images of a split in any layout; their checks and fingerprints."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from timm.data.readers.reader import Reader

from ofq.config.datasets import (
    SPLIT_NAMES,
    Covers,
    DataFacts,
    Place,
    SplitName,
    digest_of,
    hidden,
)
from ofq.console import printable
from ofq.errors import UserError, some
from ofq.training.data.decoding import Decoder, NoClearRange, Plain
from ofq.training.data.listing import (
    ENDINGS_IN_WORDS,
    Listing,
    checked_classes,
    in_order,
    is_image,
    lacking,
    layout_of,
    unreached,
)
from ofq.training.data.rows import open_rows
from ofq.training.data.tars import open_shards, open_tar

SPLITS: tuple[SplitName, ...] = ("train", "val")

_UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_HASHED = 1 << 30  # bytes of a split up to which its fingerprint covers contents


class Unreadable(UserError):
    """Error: an image can't be decoded.

    Args:
        name: Its file.
        reason: The reason, if known.
    """

    def __init__(self, name: str, reason: str = "") -> None:
        super().__init__(f"{name}: not a readable image" + (f": {reason}" if reason else ""))
        self.name = name


@dataclass(frozen=True)
class Split:
    """Labelled images of one split, in a fixed order.

    Attributes:
        reader: The images; safe to use in several processes.
        classes: Numbers of the classes by name.
    """

    reader: Reader
    classes: dict[str, int]

    def __len__(self) -> int:
        return len(self.reader)

    def decode(self, index: int, decoder: Decoder) -> tuple[Any, int]:
        """Return an image in the decoder's form, and its label.

        Raises:
            Unreadable: It can't be decoded.
            UserError: Its file is missing, or this user may not read it.
            TryAgain: It can't be read for now, as on a file system that doesn't answer.
        """
        try:
            file, label = self.reader[index]
            with file:
                return decoder.decode(file), int(label)
        except _UNDECODABLE as error:
            name = self.name(index)
            if isinstance(error, OSError) and error.errno is not None:
                raise unreached(name, error) from None
            reason = str(error) if isinstance(error, NoClearRange) else ""
            raise Unreadable(name, reason) from None

    def name(self, index: int) -> str:
        """Return the name of an image's file, for messages."""
        return printable(self.reader.filename(index, absolute=True) or f"image {index}")


@functools.cache
def open_split(place: Place, split: SplitName) -> Split:
    """Open a split's images; cached, so each split is listed once per process.

    Args:
        place: Location of the data set.
        split: The split. A folder with neither a ``train`` nor a ``val`` contains the classes of
            the validation split.

    Raises:
        UserError: There is no such split, or its layout isn't the expected one.
    """
    if place.layout != "hfds" and not Path(place.at).is_dir():
        raise UserError(f"{place.at}: no such folder; expected val/CLASS/IMAGE below it")
    reader = _OPENERS[place.layout](place, split)
    if reader is None:
        raise UserError(f"{place}: no split '{split}'; expected {layout_of(place.layout, split)}")
    return Split(reader, dict(reader.class_to_idx))


def _folder(place: Place, split: SplitName) -> Listing | None:
    root, expected = _split_at(place, split), layout_of("folder", split)
    if root is None:
        return None
    if root == place.at:
        expected = "CLASS/IMAGE"
    folders, images = _listed(root)
    if images:
        raise UserError(
            f"{root}: images such as {printable(images[0])} lie directly in it; expected {expected}"
        )
    if not folders:
        raise UserError(f"{root}: Found 0 images in it; expected {expected}")
    names: list[bytes] = []
    counts: dict[str, int] = {}
    # images are grouped by class, in timm's order of whole paths
    for name in in_order(folders, "/"):
        of_class = _images_of(f"{root}/{name}", expected)
        names += [os.fsencode(f"{name}/{image}") for image in in_order(of_class)]
        counts[name] = len(of_class)
    classes = checked_classes(counts, root, expected)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = numpy.repeat([numbers[name] for name in counts], list(counts.values()))
    return Listing(root, classes, names, labels)  # type: ignore[arg-type]


def _split_at(place: Place, split: SplitName) -> str | None:
    """Return the folder that contains a split's classes; None if there is none."""
    present = [name for name in SPLIT_NAMES[split] if (Path(place.at) / name).is_dir()]
    if len(present) > 1:
        first, second, *_ = present
        raise UserError(f"{place}: has both {first}/ and {second}/; leave one of them there")
    if present:
        return str(Path(place.at) / present[0])
    others = SPLIT_NAMES["train" if split == "val" else "val"]
    if split == "train":
        return None
    if any((Path(place.at) / other).is_dir() for other in others):
        raise UserError(f"{place}: has train/, but neither val/ nor validation/ to evaluate on")
    return place.at


def _images_of(folder: str, expected: str) -> list[str]:
    """Return the names of the images of a class; refuse a class without any."""
    below, images = _listed(folder)
    for name in below:
        deep = _any_image(f"{folder}/{name}")
        if deep:
            raise UserError(
                f"{printable(deep)}: lies in a folder below that of its class; expected {expected}"
            )
    if not images:
        raise UserError(
            f"{printable(folder)}: no image in this folder of a class; expected {expected}, with "
            f"images that end in {ENDINGS_IN_WORDS}; remove the folder if it isn't one"
        )
    return images


def _any_image(top: str) -> str | None:
    """Return an image in a folder at any depth, or None; links may lead in circles."""
    seen, left = set[tuple[int, int]](), [top]
    while left:
        folder = left.pop()
        try:
            about = os.stat(folder)
        except OSError as error:
            raise unreached(printable(folder), error) from None
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        folders, images = _listed(folder)
        if images:
            return f"{folder}/{min(images)}"
        left += [f"{folder}/{name}" for name in reversed(folders)]
    return None


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Return names of folders and images in a folder, following links, without hidden ones."""
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_image(entry.name) and entry.is_file():
                    images.append(entry.name)
                elif is_image(entry.name) or (entry.is_symlink() and not entry.is_file()):
                    kind = "a link that leads nowhere" if entry.is_symlink() else "no regular file"
                    raise UserError(f"{printable(entry.path)}: {kind}; mend or remove it")
    except OSError as error:
        raise unreached(printable(error.filename or folder), error) from None
    return sorted(folders), sorted(images)


_OPENERS = {"folder": _folder, "tar": open_tar, "wds": open_shards, "hfds": open_rows}


@dataclass(frozen=True)
class Census:
    """Numbers of classes and images of a data set.

    Attributes:
        classes: Number of classes.
        images: Number of images by split.
    """

    classes: int
    images: dict[SplitName, int]


def examine(place: Place, classes: int | None, *splits: SplitName) -> Census:
    """Check a data set before training: splits, classes, and one image of each split.

    Args:
        place: Location of the data set.
        classes: Required number of classes; None for any number.
        splits: The splits needed.

    Raises:
        UserError: A split is missing or its layout isn't the expected one, the splits have
            different classes, their number isn't the required one, or the first image of a split
            can't be decoded.
    """
    opened = {split: open_split(place, split) for split in splits}
    for name, split in opened.items():
        count = len(split.classes)
        for other, against in opened.items():
            missing = [lacking(c, split.classes) for c in against.classes if c not in split.classes]
            if missing:
                raise UserError(
                    f"{place}: split '{name}' has no image of {some(missing)}, "
                    f"which split '{other}' has; they need the same classes"
                )
        if classes is not None and count != classes:
            few = "too few" if count < classes else "too many"
            raise UserError(
                f"{place}: split '{name}' has {count} classes, {few}; the recipe needs {classes}"
            )
        split.decode(0, Plain())
    return Census(len(split.classes), {name: len(split) for name, split in opened.items()})


def describe(name: str, place: Place, *splits: SplitName) -> DataFacts:
    """Return facts of a data set: classes, and fingerprints of all images.

    A fingerprint covers, for each image in the reader's order, its name within the split, class,
    size and, in splits of at most 1 GiB, content.

    Args:
        name: Name of the data set.
        place: Location of the data set.
        splits: The splits to read.

    Raises:
        UserError: As for :func:`examine`, or an image can't be read.
    """
    opened = {split: open_split(place, split) for split in splits}
    first = next(iter(opened.values()))
    covers: dict[str, Covers] = {}
    fingerprints: dict[str, str] = {}
    for key, split in opened.items():
        covers[key], fingerprints[key] = _fingerprint(split)
    total = hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode())
    return DataFacts(
        name=name,
        classes=len(first.classes),
        class_names=list(first.classes),
        numbered=first.reader.numbered,
        class_digest=digest_of(list(first.classes)),
        images={key: len(split) for key, split in opened.items()},
        images_by_class={
            key: numpy.bincount(split.reader.labels, minlength=len(split.classes)).tolist()
            for key, split in opened.items()
        },
        files=sum(map(len, opened.values())),
        covers=covers,
        fingerprints=fingerprints,
        fingerprint=f"sha256:{total.hexdigest()}",
    )


def _fingerprint(split: Split) -> tuple[Covers, str]:
    reader, labels = split.reader, split.reader.labels.tolist()
    with _reading(split):
        sizes = reader.sizes()
        contents = int(sizes.sum()) <= _HASHED
        digest = hashlib.sha256(json.dumps(list(split.classes)).encode())
        for index, (label, size) in enumerate(zip(labels, sizes.tolist(), strict=True)):
            name = reader.name(index)
            digest.update(b"%d %d %d %b" % (label, size, len(name), name))
            if contents:
                with reader[index][0] as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return "contents" if contents else "names and sizes", f"sha256:{digest.hexdigest()}"


@contextmanager
def _reading(split: Split) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreached(printable(error.filename or split.reader.root), error) from None
