"""Lists of images with their classes, shared by the readers of all layouts.

Class numbers and the order of images are functions of names alone, in every layout. Names are in
timm's natural order, so that ordinary data sets are numbered as by timm's readers; names that tie
in it (``A`` and ``a``, ``1`` and ``01``) are in the order of their characters.
"""

import errno
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy
from numpy.typing import NDArray
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader

from ofq.config.datasets import Layout, SplitName
from ofq.console import printable
from ofq.errors import PERMANENT_ERRNOS, TryAgain, UserError

ENDINGS = get_img_extensions(as_set=True)
"""Suffixes of the names of images."""
ENDINGS_IN_WORDS = ", ".join(sorted(ENDINGS))

_EXPECTED: dict[Layout, str] = {
    "folder": "{0}/CLASS/IMAGE",
    "tar": "{0}.tar with CLASS/IMAGE, or {0}/CLASS.tar",
    "wds": "shards named like {0}-0000.tar, or {0}/*.tar",
    "hfds": "a split '{0}'",
}
_LONGEST_NUMBER = 4000  # digits of a number in a name; Python converts no more


class _Names(Sequence[bytes]):
    """File names in one block of memory, which forked processes share without copies."""

    def __init__(self, names: Iterable[bytes]) -> None:
        sizes: list[int] = []
        block = bytearray()
        for name in names:
            block += name
            sizes.append(len(name))
        self.block = bytes(block)
        self.ends = numpy.cumsum(sizes, dtype=numpy.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        return self.block[self.ends[index - 1] if index else 0 : self.ends[index]]


class Listing(Reader):
    """Reader of images in files of their own, or in tar files.

    Args:
        root: The folder that names are relative to.
        classes: Names of the classes, in the order of their numbers.
        names: Names of the images below the root, or in their tar file.
        labels: Number of each image's class.
        tars: The tar files, if the images lie in some.
        parts: (images, 3): number of the tar file, offset and size of each image in one.
        numbered: Whether classes have only numbers, no names.
    """

    def __init__(
        self,
        root: str,
        classes: list[str],
        names: Iterable[bytes],
        labels: Sequence[int],
        *,
        tars: Sequence[str] = (),
        parts: NDArray[numpy.int64] | None = None,
        numbered: bool = False,
    ) -> None:
        super().__init__()
        self.root = root
        self.class_to_idx = {name: number for number, name in enumerate(classes)}
        self.names = _Names(names)
        self.labels = numpy.asarray(labels, dtype=numpy.int32)
        self.tars = list(tars)
        self.parts = parts
        self.numbered = numbered

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        label = int(self.labels[index])
        if self.parts is None:
            return open(self._path(index), "rb"), label
        tar, offset, size = self.parts[index].tolist()
        with open(os.path.join(self.root, self.tars[tar]), "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def name(self, index: int) -> bytes:
        """Return an image's name within its split."""
        return bytes(self.names[index])

    def sizes(self) -> NDArray[numpy.int64]:
        """Return the size of each image in bytes."""
        if self.parts is not None:
            return self.parts[:, 2]
        return numpy.array([os.stat(self._path(i)).st_size for i in range(len(self))], "int64")

    def _path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = os.fsdecode(self.names[index])
        if basename:
            return os.path.basename(name)
        if self.parts is None:
            return os.path.join(self.root, name) if absolute else name
        return f"{os.path.join(self.root, self.tars[self.parts[index, 0]])}: {name}"


def natural(name: str) -> list[Any]:
    """Return the key of timm's natural order: ignores case, and compares numbers by value."""
    parts: list[Any] = re.split(r"(\d+)", name.lower())
    parts[1::2] = [int(number[:_LONGEST_NUMBER]) for number in parts[1::2]]
    return parts


def in_order(names: Iterable[str], after: str = "") -> list[str]:
    """Sort names in natural order, with ``after`` appended to each; sort ties by character."""
    return sorted(names, key=lambda name: (natural(name + after), name))


def is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in ENDINGS


def layout_of(layout: Layout, split: SplitName) -> str:
    """Describe the expected layout of a split, for errors."""
    return _EXPECTED[layout].format(split)


def checked_classes(classes: Iterable[str], where: str, expected: str) -> list[str]:
    """Return class names in the order of their numbers.

    Args:
        classes: The names.
        where: The file or folder that contains them, for errors.
        expected: The layout, for errors.

    Raises:
        UserError: There are fewer than two, one can't be written to a record, or two are one name
            in different forms of Unicode, which look the same.
    """
    names = in_order(classes)
    forms: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: the name of class '{printable(name)}' isn't UTF-8; rename it"
            ) from None
        twin = forms.setdefault(unicodedata.normalize("NFC", name), name)
        if twin != name:
            raise UserError(
                f"{where}: classes {twin!a} and {name!a} are one name in two forms of "
                "Unicode; rename one, or move its images to the other"
            )
    if len(names) < 2:
        problem = f"all images lie in '{printable(names[0])}', one class" if names else "no image"
        raise UserError(f"{where}: {problem}; expected {expected}, with two classes or more")
    return names


def lacking(name: str, others: Iterable[str]) -> str:
    """Name a class for a message; and one of others that differs in what the eye doesn't see.

    Args:
        name: The class.
        others: Those among which it isn't.
    """
    alike = next((other for other in others if _seen(other) == _seen(name)), None)
    return printable(name) if alike is None else f"{name!a} (but of {alike!a})"


def _seen(name: str) -> str:
    letters = (c for c in unicodedata.normalize("NFKC", name) if c.isprintable())
    return "".join(letters).strip().casefold()


def unreached(name: str, error: OSError) -> Exception:
    """Return the exception for a file that can't be read, permanently or for now."""
    kind = UserError if error.errno in (*PERMANENT_ERRNOS, errno.ELOOP) else TryAgain
    return kind(f"{name}: {error.strerror}")
