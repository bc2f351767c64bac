"""Images in tar files with a folder or a tar file for each class, and in WebDataset shards."""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from ofq.atomic import write_file
from ofq.config.datasets import SPLIT_NAMES, Place, SplitName, hidden, tars_in
from ofq.console import printable
from ofq.errors import UserError, some
from ofq.training.data.listing import (
    ENDINGS_IN_WORDS,
    Listing,
    checked_classes,
    in_order,
    is_image,
    layout_of,
    natural,
    unreached,
)

_NO_TAR = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError)
_INDEX = "_index.npz"
_LARGE = 1 << 30  # bytes of tar files above which an index file is written
_LONGEST_LABEL = 32  # bytes of a .cls file
_COMPRESSED = re.compile(r"\.(?:tar\.(?:gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz)$", re.I)
_ANY = re.compile("")


class _Found(NamedTuple):
    """An image in a tar file.

    Attributes:
        label: Its class: a name; in shards a number.
        name: Its name in the tar file.
        tar: Number of the tar file.
        offset: Offset of its content in bytes.
        size: Its size in bytes.
    """

    label: Any
    name: str
    tar: int
    offset: int
    size: int


def open_tar(place: Place, split: SplitName) -> Listing | None:
    """List a split's images in a tar file, or in one per class; None if there is no tar file.

    Raises:
        UserError: A file isn't a readable tar file, or its layout isn't the expected one.
    """
    for name in SPLIT_NAMES[split]:
        for path in (Path(place.at) / f"{name}.tar", Path(place.at) / name):
            if path.is_file() or tars_in(path):
                return _in_tar(path, split)
    return None


def _in_tar(path: Path, split: SplitName) -> Listing:
    """List the images in a tar file, or a folder of them; write an index for large ones."""
    root, tars = (path, tars_in(path)) if path.is_dir() else (path.parent, [path])
    if path.is_dir():
        _check_folder(path, split)
    index = root / f"_{path.stem}{_INDEX}"
    try:
        about = [(tar.name, tar.stat()) for tar in tars]
    except OSError as error:
        raise unreached(printable(error.filename), error) from None
    state = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in about]
    large = sum(stat.st_size for _, stat in about) > _LARGE
    reader = _indexed(index, root, state) if large else None
    if reader is None:
        reader = _read_through(path, root, tars, split)
        if large and os.access(root, os.W_OK):
            with suppress(OSError):  # the index only saves time
                write_file(index, lambda temporary: _write_index(temporary, reader, state))
    return reader


def _check_folder(path: Path, split: SplitName) -> None:
    """Refuse what would be passed over beside a split's tar files, each of a class."""
    _refuse_compressed(path)
    with os.scandir(path) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not hidden(e.name))
    if folders:
        raise UserError(
            f"{path}: has folders such as {printable(folders[0])} beside tar files; expected "
            f"{layout_of('tar', split)}, or all classes as folders"
        )


def _write_index(path: Path, reader: Listing, state: list[list[Any]]) -> None:
    assert reader.parts is not None
    about = json.dumps({"tars": state, "classes": list(reader.class_to_idx)}).encode()
    with path.open("wb") as file:
        numpy.savez(
            file,
            about=numpy.frombuffer(about, numpy.uint8),
            block=numpy.frombuffer(reader.names.block, numpy.uint8),
            ends=reader.names.ends,
            labels=reader.labels,
            parts=reader.parts,
        )


def _indexed(index: Path, root: Path, state: list[list[Any]]) -> Listing | None:
    """Return the listing in an index file; None if there is none, or tar files have changed."""
    try:
        with numpy.load(index, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes())
            if about["tars"] != state:
                return None
            reader = Listing(
                str(root), about["classes"], [], stored["labels"],
                tars=[name for name, *_ in state], parts=stored["parts"],
            )  # fmt: skip
            reader.names.block, reader.names.ends = stored["block"].tobytes(), stored["ends"]
            return reader
    except Exception:  # damaged in any way: it is written anew
        return None


def _read_through(path: Path, root: Path, tars: list[Path], split: SplitName) -> Listing:
    """List all images of a tar file with classes as folders or tar files, or of one per class."""
    expected, single = layout_of("tar", split), path.is_file()
    images, empty = [], set[str]()
    for number, tar in enumerate(tars):
        own = None if single else tar.stem
        try:
            with tarfile.open(tar, "r:") as opened:
                images += _of_classes(opened, tar, number, own, split, empty)
        except _NO_TAR as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{tar}: no tar file of images: {printable(error)}") from None
        if own is not None:
            empty.add(own)
    classes = checked_classes({image.label for image in images}, str(path), expected)
    empty -= set(classes)
    if empty:
        raise UserError(
            f"{path}: no image of class {printable(some(in_order(empty)))}; expected {expected}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    in_folders = any("/" in image.name for image in images)
    of_class = {name: (natural(f"{name}/"), name) for name in classes}
    images.sort(key=lambda image: _place_in_order(image, of_class[image.label], in_folders))
    for one, other in pairwise(images):
        if (one.label, one.name) == (other.label, other.name):
            raise UserError(f"{path}: holds {printable(one.name)} twice; expected it once")
    return Listing(
        str(root),
        classes,
        (os.fsencode(image.name) for image in images),
        [numbers[image.label] for image in images],
        tars=[tar.name for tar in tars],
        parts=numpy.array([image[2:] for image in images], numpy.int64),
    )


def _place_in_order(image: _Found, of_class: Any, in_folders: bool) -> tuple[Any, Any]:
    """Return the sort key: as in a folder; for one tar file per class by names first, as timm."""
    name = image.name.rpartition("/")[2]
    of_name = natural(name), name
    return (of_class, of_name) if in_folders else (of_name, of_class)


def _of_classes(
    tar: tarfile.TarFile,
    path: Path,
    number: int,
    own: str | None,
    split: SplitName,
    empty: set[str],
) -> list[_Found]:
    """Return the images in a tar file, with their classes.

    Args:
        tar: The file, opened.
        path: Its path, for errors.
        number: Its number.
        own: The class of all its images; None if they lie in folders or tar files by class.
        split: Its split; ``train/CLASS/IMAGE`` in ``train.tar`` is read as ``CLASS/IMAGE``.
        empty: Names of folders by class, to which those of this file are added; the caller removes
            those with images.
    """
    members: list[tuple[tuple[str, ...], int, int]] = []
    folders: list[tuple[str, ...]] = []
    for parts, member in _members(tar, path):
        if member.isdir():
            folders.append(parts)
        elif own is None and parts[-1].endswith(".tar"):
            name = parts[-1].removesuffix(".tar")
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                inside = _of_classes(inner, path, number, name, split, empty)
            base, folder = member.offset_data, (*parts[:-1], name)
            for image in inside:
                place = (*folder, os.path.basename(image.name))
                members.append((place, base + image.offset, image.size))
            folders.append(folder)
        elif is_image(parts[-1]):
            members.append((parts, member.offset_data, member.size))
        elif own is None and _COMPRESSED.search(parts[-1]):
            raise UserError(
                f"{path}: {printable('/'.join(parts))} would be passed over; expected "
                f"{layout_of('tar', split)}, uncompressed"
            )
    tops = SPLIT_NAMES[split]
    if own is None and all(parts[0] in tops and len(parts) > 2 for parts, *_ in members):
        members = [(parts[1:], offset, size) for parts, offset, size in members]
        folders = [parts[1:] if parts[0] in tops else parts for parts in folders]
    for parts, *_ in members:
        if not (len(parts) == 2 if own is None else parts[:-1] in ((), (own,))):
            where = "lies directly in it" if len(parts) == 1 else "lies too deep"
            raise UserError(
                f"{path}: {printable('/'.join(parts))} {where}; expected {layout_of('tar', split)}"
            )
    if own is None:
        empty.update(parts[0] for parts in folders if parts)
    return [
        _Found(own or parts[0], "/".join(parts), number, offset, size)
        for parts, offset, size in members
    ]


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[tuple[str, ...], tarfile.TarInfo]]:
    """Yield the members of a tar file and the parts of their names, without hidden ones.

    Raises:
        UserError: A member is a link, or sparse, or its path leads outside.
    """
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a million members would take gigabytes
        parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
        name = printable(member.name)
        if ".." in parts:
            raise UserError(f"{path}: {name} leads outside; make the tar file anew without '..'")
        if not parts or any(map(hidden, parts)):
            continue
        if member.issym() or member.islnk():
            raise UserError(
                f"{path}: {name} is a link, which isn't followed in a tar file; make it anew with "
                "`tar --dereference --hard-dereference`"
            )
        if member.issparse():
            raise UserError(f"{path}: {name} is sparse; make the tar file anew without --sparse")
        if member.isdir() or member.isfile():
            yield parts, member
    _check_end(tar, path)


def _check_end(tar: tarfile.TarFile, path: Path) -> None:
    """Make sure that a tar file has ended, and wasn't only cut off, damaged or joined with others.

    tarfile takes a header that it can't read for the end, and the images behind it would be lost
    without a word.

    Raises:
        UserError: It hasn't.
    """
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE:
        raise UserError(
            f"{path}: cut off or damaged at byte {tar.offset:,}, where no file and no end is; "
            "fetch or make it anew"
        )
    while block := file.read(tarfile.BLOCKSIZE):
        if block[257:262] == b"ustar":
            raise UserError(
                f"{path}: goes on after its end, as tar files do that were joined by cat; make one "
                "of them by `tar --concatenate`"
            )


def open_shards(place: Place, split: SplitName) -> Listing | None:
    """List a split's images in WebDataset shards; None if there is no shard of it.

    Raises:
        UserError: A shard isn't a readable tar file, an image has no label, or labels aren't
            numbers of classes from 0 without gaps.
    """
    word = _splits(split)
    root = Path(place.at)
    below = [folder for folder in sorted(root.iterdir()) if not hidden(folder.name)]
    tars = tars_in(root) + [tar for folder in below for tar in tars_in(folder)]
    names = [str(tar.relative_to(root)) for tar in tars]
    names = [name for name in names if word.search(name.partition("/")[0])]
    _check_shards(root, below, names, split)
    return _read_shards(root, names, split) if names else None


def _check_shards(root: Path, below: list[Path], names: list[str], split: SplitName) -> None:
    """Refuse shards that would count in both splits, or be passed over as they are compressed."""
    for name in names:
        if all(_splits(both).search(name.partition("/")[0]) for both in SPLIT_NAMES):
            raise UserError(
                f"{root}: {printable(name)} is named like shards of both splits; rename it"
            )
    word = _splits(split)
    _refuse_compressed(root, word)
    for folder in below:
        if folder.is_dir() and word.search(folder.name):
            _refuse_compressed(folder)


def _splits(split: SplitName) -> re.Pattern[str]:
    """Find the name of a split in that of a shard, or of its folder."""
    return re.compile(rf"(^|[-_.])({'|'.join(SPLIT_NAMES[split])})([-_.\d]|$)")


def _refuse_compressed(folder: Path, named: re.Pattern[str] = _ANY) -> None:
    """Refuse compressed tar files, which would be passed over, in a folder of others."""
    found = [path.name for path in folder.iterdir() if not hidden(path.name)]
    found = sorted(n for n in found if _COMPRESSED.search(n) and named.search(n))
    if found:
        raise UserError(
            f"{folder}: {printable(some(found))} would be passed over; expected uncompressed .tar "
            "files; unpack what is compressed, or take it away"
        )


def _read_shards(root: Path, names: list[str], split: SplitName) -> Listing:
    """List the images of shards for random access: KEY.jpg beside KEY.cls, a class's number.

    timm's own reader streams shards through a shuffling buffer, so a run resumed in the middle of
    an epoch would get other images.
    """
    images = [image for number, name in enumerate(names) for image in _samples(root / name, number)]
    labels = sorted({image.label for image in images})
    if len(labels) < 2 or labels != list(range(len(labels))):
        values = some([str(label) for label in labels]) or "none"
        raise UserError(
            f"{root}: labels (.cls) of split '{split}' are {values}; expected two classes or more, "
            f"numbered from 0 without gaps{_gap(labels)}"
        )
    return Listing(
        str(root),
        [str(label) for label in labels],
        (os.fsencode(image.name) for image in images),
        [image.label for image in images],
        tars=names,
        parts=numpy.array([image[2:] for image in images], numpy.int64),
        numbered=True,
    )


def _gap(labels: list[int]) -> str:
    gap = next((n for n, label in enumerate(labels) if n != label), None)
    return "" if gap is None else f"; no image has {gap}, but one has {labels[-1]}"


def _samples(shard: Path, number: int) -> Iterator[_Found]:
    """Yield the images of a shard, in its order."""
    images: dict[str, _Found] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for parts, member in _members(tar, shard):
                name = "/".join(parts)
                key, _, ending = name.rpartition(".")
                if not member.isfile() or (ending != "cls" and not is_image(name)):
                    continue
                if key in (labels if ending == "cls" else images):
                    raise UserError(f"{shard}: two files of {printable(name)}; expected one")
                if ending == "cls":
                    labels[key] = _label(tar, member, shard)
                else:
                    images[key] = _Found(None, name, number, member.offset_data, member.size)
    except _NO_TAR as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shard}: not a readable shard: {printable(error)}") from None
    unlabelled = [printable(image.name) for key, image in images.items() if key not in labels]
    if unlabelled:
        raise UserError(f"{shard}: no .cls beside {some(unlabelled)}")
    alone = [printable(f"{key}.cls") for key in labels if key not in images]
    if alone:
        raise UserError(
            f"{shard}: no image beside {some(alone)}; expected one that ends in {ENDINGS_IN_WORDS}"
        )
    for key, image in images.items():
        yield image._replace(label=labels[key])


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    file = tar.extractfile(member)
    content = file.read(_LONGEST_LABEL + 1) if file else b""
    if len(content) > _LONGEST_LABEL or not re.fullmatch(rb"\s*\d{1,9}\s*", content):
        text = printable(content.decode(errors="replace"))
        raise UserError(
            f"{shard}: {printable(member.name)} holds '{text}'; "
            "expected the number of a class, 0 or more"
        )
    return int(content)
