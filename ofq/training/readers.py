"""The images of a split, whatever they lie in, by timm's readers; and a check of them."""

import functools
import hashlib
import io
import os
import pickle
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Literal

from PIL import Image
from timm.data import create_dataset
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from ofq.errors import LASTING, TryAgain, UserError, some
from ofq.study.dataset import Layout, Place
from ofq.training.decoding import Decoder, Plain

SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, ...] = ("train", "val")

_NAMES = {"train": ("train", "training"), "val": ("val", "validation")}
_UNDECODABLE = (OSError, SyntaxError, ValueError, tarfile.TarError, Image.DecompressionBombError)
_EXPECTED: dict[Layout, str] = {
    "folder": "{0}/CLASS/IMAGE",
    "tar": "{0}.tar with CLASS/IMAGE, or {0}/CLASS.tar",
    "wds": "shards named like {0}-0000.tar, or {0}/*.tar",
    "hfds": "a split '{0}'",
}


_INDEX = "_tarinfos.pickle"  # timm's name for it
_LARGE = 1 << 30  # bytes of tar files from which on an index is worth a file


class Unreadable(UserError):
    """An image can't be decoded.

    Args:
        name: Its file.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: not a readable image")
        self.name = name


@dataclass(frozen=True)
class Split:
    """The labelled images of one split, in an order of their own that is always the same.

    Attributes:
        reader: One of timm's, or one like them; safe to use in several processes.
        classes: Numbers of the classes by name.
    """

    reader: Reader
    classes: dict[str, int]

    def __len__(self) -> int:
        return len(self.reader)

    def decode(self, index: int, decoder: Decoder) -> tuple[Any, int]:
        """An image as a decoder gives it, and its label.

        Raises:
            Unreadable: It can't be decoded.
            UserError: Its file isn't there, or mayn't be read.
            TryAgain: It can't be read for now, as on a file system that doesn't answer.
        """
        try:
            file, label = self.reader[index]
            with file:
                return decoder.decode(file), int(label)
        except _UNDECODABLE as error:
            name = self.name(index)
            if isinstance(error, OSError) and error.errno is not None:
                kind = UserError if error.errno in LASTING else TryAgain
                raise kind(f"{name}: {error.strerror}") from None
            raise Unreadable(name) from None

    def name(self, index: int) -> str:
        """An image's file, for people."""
        return str(self.reader.filename(index, absolute=True) or f"image {index}")


class Shards(Reader):
    """WebDataset shards, read in any order: KEY.jpg beside KEY.cls, a class's number.

    timm's own reader streams shards through a buffer that shuffles, so that no run could go on in
    the middle of an epoch with the images that it would have had.

    Args:
        shards: The tar files, uncompressed.

    Raises:
        UserError: One isn't a readable tar file, or an image has no label.
    """

    def __init__(self, shards: list[Path]) -> None:
        super().__init__()
        self.samples = [sample for shard in shards for sample in _samples(shard)]
        self.class_to_idx = {str(label): label for label in sorted({s[3] for s in self.samples})}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        shard, offset, size, label, _ = self.samples[index]
        with open(shard, "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        shard, *_, name = self.samples[index]
        return name if basename else f"{shard}: {name}"


def _samples(shard: Path) -> Iterator[tuple[str, int, int, int, str]]:
    """Of each image: shard, offset and size in bytes, label, name."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.rpartition(".")
                if f".{extension.lower()}" in get_img_extensions():
                    images[key] = member
                elif extension == "cls":
                    labels[key] = int(_content(tar, member))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{shard}: not a readable shard: {error}") from None
    unlabelled = [member.name for key, member in images.items() if key not in labels]
    if unlabelled:
        raise UserError(f"{shard}: no .cls beside {some(unlabelled)}")
    for key, member in images.items():
        yield str(shard), member.offset_data, member.size, labels[key], member.name


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


@functools.cache
def open_split(place: Place, split: SplitName) -> Split:
    """A split's images; looked for once in a process.

    Args:
        place: Where the data set lies.
        split: Which split. A folder with neither a ``train`` nor a ``val`` is one of classes, and
            its own validation split.

    Raises:
        UserError: There is no such split, or nothing in it.
    """
    if place.layout != "hfds" and not Path(place.at).is_dir():
        raise UserError(f"{place.at}: no such folder; expected val/CLASS/IMAGE below it")
    reader = _OPENERS[place.layout](place, split)
    if reader is None:
        raise UserError(
            f"{place}: no split '{split}'; expected {_EXPECTED[place.layout].format(split)}"
        )
    classes = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", {})
    return Split(reader, dict(classes))


def _folder(place: Place, split: SplitName) -> Reader | None:
    try:
        reader = create_dataset("", root=place.at, split=_NAMES[split][-1]).reader
    except RuntimeError as error:
        raise UserError(f"{place}: {error}") from None
    if Path(reader.root) != Path(place.at):
        return reader
    other = "train" if split == "val" else "val"
    if split == "val" and (Path(place.at) / other).is_dir():
        raise UserError(f"{place}: has train/, but neither val/ nor validation/ to evaluate on")
    return reader if split == "val" else None


def _tar(place: Place, split: SplitName) -> Reader | None:
    for name in _NAMES[split]:
        for path in (Path(place.at) / f"{name}.tar", Path(place.at) / name):
            if path.is_file() or (path.is_dir() and any(path.glob("*.tar"))):
                try:
                    return _in_tar(path)
                except (tarfile.TarError, OSError, ValueError) as error:
                    raise UserError(f"{path}: no tar file of images: {error}") from None
    return None


def _in_tar(path: Path) -> Reader:
    """A tar file, or a folder of them; large ones are indexed once and for all."""
    at, tars = (path, sorted(path.glob("*.tar"))) if path.is_dir() else (path.parent, [path])
    index = at / f"_{path.stem}{_INDEX}"
    large = sum(tar.stat().st_size for tar in tars) > _LARGE
    if large and os.access(at, os.W_OK) and _outdated(index, tars):
        with suppress(OSError):  # it saves time, no more
            _write_index(path, tars, index)
    try:
        return _tar_reader(path, large and not _outdated(index, tars))
    except (EOFError, pickle.UnpicklingError, AssertionError) as error:
        raise UserError(f"{index}: no index of {path} ({error}); remove it") from None


def _tar_reader(path: Path, indexed: bool) -> Reader:
    # without open files, which its processes would share
    return ReaderImageInTar(str(path), cache_tarfiles=False, cache_tarinfo=indexed)


def _outdated(index: Path, tars: list[Path]) -> bool:
    newest = max(tar.stat().st_mtime for tar in tars)
    return not index.exists() or index.stat().st_mtime < newest


def _write_index(path: Path, tars: list[Path], index: Path) -> None:
    """Let timm write its index aside: other runs may look for it, and must find it whole."""
    with TemporaryDirectory(prefix=".index-", dir=index.parent) as aside:
        there = Path(aside) / path.name
        where = there if path.is_dir() else there.parent
        where.mkdir(exist_ok=True)
        for tar in tars:
            (where / tar.name).symlink_to(tar.resolve())
        _tar_reader(there, indexed=True)
        (where / index.name).replace(index)


def _shards(place: Place, split: SplitName) -> Reader | None:
    word = re.compile(rf"(^|[-_.])({'|'.join(_NAMES[split])})([-_.\d]|$)")
    found = sorted(Path(place.at).glob("*.tar")) + sorted(Path(place.at).glob("*/*.tar"))
    shards = [p for p in found if word.search(str(p.relative_to(place.at)).partition("/")[0])]
    return Shards(shards) if shards else None


def _hugging_face(place: Place, split: SplitName) -> Reader | None:
    try:
        from timm.data.readers.reader_hfds import ReaderHfds
    except ImportError:
        raise UserError(
            f"{place}: needs the package datasets: pip install 'ofq[datasets]'"
        ) from None
    reason = ""
    for name in _NAMES[split]:
        try:
            return ReaderHfds(name=place.at, split=name)
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).partition("\n")[0]
    if "split" in reason:
        return None
    raise UserError(f"{place}: not a readable data set of images: {reason}")


_OPENERS = {"folder": _folder, "tar": _tar, "wds": _shards, "hfds": _hugging_face}


@dataclass(frozen=True)
class Census:
    """What was found of a data set.

    Attributes:
        classes: Number of classes.
        images: Number of images by split.
    """

    classes: int
    images: dict[SplitName, int]


def examine(place: Place, classes: int | None, *splits: SplitName) -> Census:
    """Check a data set before anything is trained on it: splits, classes, and one image of each.

    Args:
        place: Where it lies.
        classes: How many classes it must have; None for any number.
        splits: Those that are needed.

    Raises:
        UserError: A split is missing, the splits have different classes, there are too few or too
            many, or the first image of a split can't be decoded.
    """
    opened = {split: open_split(place, split) for split in splits}
    for name, split in opened.items():
        found = len(split.classes)
        for other, against in opened.items():
            missing = [c for c in against.classes if c not in split.classes]
            if missing:
                raise UserError(
                    f"{place}: split '{name}' has no image of {some(missing)}, "
                    f"which split '{other}' has; they need the same classes"
                )
        if classes is not None and found != classes:
            few = "too few" if found < classes else "too many"
            raise UserError(
                f"{place}: split '{name}' has {found} classes, {few}; the recipe needs {classes}"
            )
        split.decode(0, Plain())
    return Census(len(split.classes), {name: len(split) for name, split in opened.items()})


def fingerprint(place: Place) -> dict[str, Any]:
    """What tells whether two runs saw the same files.

    Returns:
        The number of ``files`` (of a Hugging Face dataset: of images), and ``fingerprint``: the
        SHA-256 of their names and sizes (of a Hugging Face dataset: of its own fingerprints).
        Hidden files and indexes of tar files don't count.
    """
    digest, count = hashlib.sha256(), 0
    if place.layout == "hfds":
        for name in SPLITS:
            split = open_split(place, name)
            digest.update(f"{name} {split.reader.dataset._fingerprint}\n".encode())
            count += len(split)
    else:
        folder = Path(place.at)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            inside = path.relative_to(folder)
            if any(part.startswith(".") for part in inside.parts) or path.name.endswith(_INDEX):
                continue
            digest.update(f"{inside} {path.stat().st_size}\n".encode())
            count += 1
    return {"files": count, "fingerprint": f"sha256:{digest.hexdigest()}"}
