"""Downloads of public files, checked against their SHA-256 and written whole or not at all."""

import gzip
import hashlib
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path

from ofq.atomic import write_file
from ofq.console import printable
from ofq.errors import UserError

_CHUNK = 2**18  # bytes
_TIMEOUT = 30  # seconds without an answer

Progress = Callable[[str, int, int | None], object]
"""Called with a file's name, the bytes that have come, and those that will have, if known."""


class Unavailable(UserError):
    """Raised when no address has a file as it should be; what was tried is the message."""


def fetch(
    name: str, digest: str, addresses: Sequence[str], folder: Path, progress: Progress
) -> str | None:
    """Download a file, unless it is there; an interrupted or wrong download leaves nothing behind.

    Args:
        name: The file's name.
        digest: SHA-256 of its content (:func:`content_sha256`).
        addresses: Folders on the web, each with a / at its end, tried in order.
        folder: An existing folder to write to.
        progress: Called after each part of the file.

    Returns:
        The address that it came from; None if it was there.

    Raises:
        Unavailable: No address has the file, or none as it should be.
        UserError: Another file of this name is there.
    """
    path, packed = folder / name, name.endswith(".gz")
    if path.exists():
        if content_sha256(path, packed) != digest:
            raise UserError(
                f"{path}: is another file than the public one (its SHA-256 isn't {digest[:12]}…); "
                "move it away, or name another folder with --to"
            )
        return None
    failures: list[str] = []
    for address in addresses:
        try:
            write_file(path, partial(_download, address + name, digest, progress))
        except Unavailable as error:
            failures.append(str(error))
        else:
            return address
    raise Unavailable("; ".join(failures))


def content_sha256(path: Path, packed: bool) -> str | None:
    """Return the SHA-256 of a file's content; None if it can't be unpacked.

    It is read in parts, so that its size doesn't matter.

    Args:
        path: The file.
        packed: Whether it is a gzip file, of which what it unpacks to is meant.
    """
    hasher = hashlib.sha256()
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            while part := file.read(_CHUNK):
                hasher.update(part)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return None
    return hasher.hexdigest()


def _download(url: str, digest: str, progress: Progress, path: Path) -> None:
    """Download a file and compare its content.

    Raises:
        Unavailable: It doesn't come, or its content is another.
    """
    with path.open("wb") as file:
        for part in _parts(url, progress):
            file.write(part)
    found = content_sha256(path, url.endswith(".gz"))
    if found != digest:
        what = "no gzip file came" if found is None else f"its SHA-256 is {found[:12]}…"
        raise Unavailable(f"{url}: a wrong file: {what}, expected {digest[:12]}…")


def _parts(url: str, progress: Progress) -> Iterator[bytes]:
    """Yield a file in parts.

    Raises:
        Unavailable: The server refuses, can't be reached, or breaks off.
    """
    name, done = url.rpartition("/")[2], 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            while part := answer.read(_CHUNK):
                done += len(part)
                progress(name, done, total)
                yield part
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code} {printable(error.reason)}"
        raise Unavailable(f"{url}: {reason}") from None
    except urllib.error.URLError as error:
        raise Unavailable(f"{url}: not reached: {printable(error.reason)}") from None
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{url}: broke off: {printable(error)}") from None
    if total is not None and done < total:
        raise Unavailable(f"{url}: broke off after {done:,} of {total:,} bytes")
