"""Bundles: a study's records, config and report in one file, from which its report can be rebuilt.

A bundle is a tar archive, compressed by xz, of one folder that is named like the study and laid out
like a checkout::

    STUDY/bundle.json       the table of contents (:class:`Contents`), with each file's SHA-256
    STUDY/config/           the study, what it extends, recipe, references, claims, all methods
    STUDY/results/runs/     each run's files from which the report is made; no weights
    STUDY/logs/train/       last errors in the logs of unfinished runs
    STUDY/reports/STUDY/    the report, unless left out

Equal records make equal bytes: members are sorted and have neither time nor owner.

Bundles are untrusted. Unpacking accepts only regular files whose names match :data:`_NAMES`,
checks each size before reading, writes the site's config itself, and creates the folder only
after all of it has been checked.
"""

import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

from pydantic import AfterValidator, ValidationError

from ofq.atomic import write_file, write_json, write_text
from ofq.config import Workspace
from ofq.config.fields import Name
from ofq.config.files import LARGEST_YAML, Strict
from ofq.config.workspace import BUNDLE
from ofq.console import printable
from ofq.errors import UserError
from ofq.monitor.status.runs import last_error
from ofq.redact import redact
from ofq.runs.folder import REPORTED, UNPACKED, RunFolder, sha256
from ofq.runs.record import PROVENANCE, facts_of, read_manifest, write_manifest
from ofq.tracking.sent import copy_run_ids
from ofq.values import read_json

if TYPE_CHECKING:
    from ofq.report.collect import Records

ENDING = ".tar.xz"
"""Suffix of a bundle's name."""

_UNFINISHED = ("run.json", "events.jsonl")  # from which the reason of missing numbers is known
_SITE = "config/config.yaml"

_PART = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}"
_RUN = f"{_PART}/{_PART}/{_PART}"
_RUN_FILES = "|".join(map(re.escape, sorted({*REPORTED, *_UNFINISHED, "mirror.json"})))
_TABLES = "table|runs|claims|differences|verdicts|effects|noise|baselines|measures|index"
_NAMES = re.compile(
    rf"{_SITE}|config/(studies|recipes|reference|claims|methods|datasets)/{_PART}\.yaml"
    rf"|results/runs/{_RUN}/({_RUN_FILES})"
    rf"|logs/train/{_RUN}\.log"
    rf"|reports/{_PART}/(({_TABLES})\.(html|md|tex|csv|parquet)|figures/{_PART}\.(svg|png))"
)
"""Allowed names of files in a bundle, beside ``bundle.json``; bundling writes no others."""

_LARGEST = 2**27  # bytes of a file in a bundle
_LARGEST_RECORD = 2**23  # bytes of one that is JSON
_MOST = 2**31  # bytes of all of them
_MOST_FILES = 100_000
_MEMORY = 2**26  # bytes that decompression may take
_PIECE = 2**20
_BLOCK = tarfile.BLOCKSIZE
_LONG_NAME = re.compile(rb"(\d+) path=([^\n\0]+)\n")
_XZ = b"\xfd7zXZ\0"

_SHOWN = 1000  # letters of a message

_PERSONAL = ("host", "pid", "slurm", "visible_gpus")  # keys of an attempt that are left out
_TEXTS = ("command", "diff", "untracked", "origin")  # keys that may hold secrets and paths
_HOME = re.compile(r"/(?:home|Users)/[^/\s'\":;,]+")


_SHA256 = re.compile(r"[0-9a-f]{64}")


def _are_named(files: dict[str, str]) -> dict[str, str]:
    for path, digest in files.items():  # one validator for all, so that many mistakes are one error
        if not _NAMES.fullmatch(path):
            raise ValueError(f"no file of a bundle lies in {path[:_SHOWN]}")
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"no SHA-256 of {path}")
    return files


class Contents(Strict):
    """Table of contents of a bundle: ``bundle.json``.

    Attributes:
        format: Version of the layout.
        study: Name of the study.
        files: SHA-256 of each other file, by its path in the bundle's folder.
    """

    format: Literal[1] = 1
    study: Name
    files: Annotated[dict[str, str], AfterValidator(_are_named)]


def bundle(
    workspace: Workspace, study: str, path: Path, *, records_only: bool = False
) -> "Records":
    """Write a study's bundle.

    Its report is made from the bundle's content alone. A run that is being trained counts as
    interrupted. Host names, process and job ids, and all of the logs except their last error are
    left out; credentials and home folders are replaced in the remaining text.

    Args:
        workspace: The checkout.
        study: The study's name; at least one of its cells has a finished run.
        path: The file to write, which appears when it is complete.
        records_only: Whether to leave out the report, which is made again from the rest.

    Returns:
        The records that its report was made from.

    Raises:
        UserError: The study is invalid, or has no report (:func:`ofq.report.build`); the file's
            folder is missing, or another file is in its place; or it is too large for a bundle.
    """
    if not path.parent.is_dir() and path.parent != workspace.reports:
        raise UserError(f"{path}: expected a file in a folder that exists")
    if os.path.lexists(path) and not _is_xz(path):
        raise UserError(f"{path}: is there already, and is no bundle; give another file")
    from ofq.report.write import write_report  # imported here, since it takes a second

    with tempfile.TemporaryDirectory() as name:
        copy = Workspace(Path(name))
        _copy_config(workspace, study, copy)
        try:
            _copy_records(workspace, study, copy)
            records = write_report(copy, study, copy.reports / study)
            if records.damaged:
                raise next(iter(records.damaged.values()))
        except UserError as error:  # found in the copy, but to be corrected in the original
            text = str(error).replace(str(copy.results), str(workspace.results))
            raise UserError(text.replace(str(copy.root), str(workspace.root))) from None
        for file in set(copy.results.rglob("*.parquet")) - records.curves.files:
            file.unlink()
        if records_only:
            shutil.rmtree(copy.reports)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda to: _pack(copy.root, study, to))
    return records


def unbundle(path: Path, out: Path | None = None) -> Workspace:
    """Unpack a bundle into a new folder, in which ``ofq report`` rebuilds its report.

    Args:
        path: The bundle.
        out: The folder, which must not exist and appears when it is complete; left out, named like
            the study, in the current folder.

    Returns:
        The folder, as a checkout with one study.

    Raises:
        UserError: The file is missing or damaged, isn't a bundle, has forbidden members such as
            links or files outside its folder, is too large, or its config or records can't be
            read; or ``out`` exists.
    """
    with _opened(path) as archive:
        members = archive.members()
        contents = _read_contents(archive, members)
        target = out or Path(contents.study)
        if os.path.lexists(target) or not target.parent.is_dir():
            raise UserError(f"{target}: expected a new folder, in one that exists")
        room = min(_MOST, shutil.disk_usage(target.parent).free // 2)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as name:
            whole = Path(name) / contents.study
            _unpack(archive, members, contents, whole, room)
            _write_site(whole, contents.study)
            write_text(whole / BUNDLE, contents.model_dump_json(indent=2))
            _check_content(whole, contents)
            for record in whole.rglob("run.json"):
                record.with_name(UNPACKED).touch()
            whole.rename(target)
    return Workspace(target)


def _copy_config(workspace: Workspace, study: str, copy: Workspace) -> None:
    recipe, config = workspace.study(study).recipe, workspace.root / "config"
    references = [config / "reference" / f"{r}.yaml" for r in workspace.study(study).references]
    claims = [config / "claims" / f"{name}.yaml" for name in workspace.study(study).claims]
    files = [*workspace.study_files(study), workspace.recipe_path(recipe), *references, *claims]
    dataset = config / "datasets" / f"{workspace.recipe_of(study).dataset}.yaml"
    files += [dataset] if dataset.exists() else []
    for file in (*files, *sorted((config / "methods").glob("*.yaml"))):
        name = file.relative_to(workspace.root)
        if _NAMES.fullmatch(name.as_posix()):  # skips files of editors and file managers
            _copy(file, copy.root / name)
    _write_site(copy.root, study)


def _write_site(root: Path, study: str) -> None:
    """Write the minimal site config of a bundle, never the original's or one from an archive.

    A site config may name folders to write to, and addresses.
    """
    write_text(root / _SITE, f'studies: ["{study}"]\n')


def _copy_records(workspace: Workspace, study: str, copy: Workspace) -> None:
    for run in workspace.grid(study).runs():
        folder, twin = (RunFolder(place.results / "runs" / run) for place in (workspace, copy))
        finished = folder.result() is not None
        for name in REPORTED if finished else ("run.json",):
            _copy(folder.path / name, twin.path / name)
        if finished:
            _depersonalize(twin)
            copy_run_ids(folder, twin)
        else:
            _copy_events(folder, twin)
            _copy_error(*(place.logs / f"{run}.log" for place in (workspace, copy)))


def _depersonalize(twin: RunFolder) -> None:
    """Remove personal and machine-related keys, which no report reads, from a copied provenance."""
    if (twin.path / "provenance.json").exists():
        provenance = twin.provenance()
        attempts = [
            {
                key: _without_secrets(value) if key in _TEXTS else value
                for key, value in attempt.items()
                if key not in _PERSONAL
            }
            for attempt in provenance["attempts"]
        ]
        facts = read_manifest(twin.path)
        write_json(twin.path / "provenance.json", provenance | {"attempts": attempts})
        if facts is not None:  # the manifest must describe the changed copy
            own = {PROVENANCE: facts_of(twin.path / PROVENANCE)}
            write_manifest(twin.path, facts | own)


def _copy_events(folder: RunFolder, twin: RunFolder) -> None:
    """Copy an unfinished run's events, without host names and ids."""
    keys = ("event", "time", "code", "seconds", "devices", "cause")
    rows = [{key: row[key] for key in keys if key in row} for row in folder.events()]
    for row in rows:
        if "cause" in row:
            row["cause"] = _without_secrets(row["cause"])
    if rows:
        lines = [json.dumps(row) + "\n" for row in rows]
        twin.path.mkdir(parents=True, exist_ok=True)
        write_text(twin.path / "events.jsonl", "".join(lines))


def _copy_error(log: Path, to: Path) -> None:
    """Write the last error of a log, if there is one; the rest may hold anything."""
    error = last_error(log) if log.exists() else None
    if error is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        write_text(to, f"error: {_without_secrets(printable(error))}\n")


def _without_secrets(data: Any) -> Any:
    """Replace credentials and the names of home folders in all text of plain data."""
    if isinstance(data, dict):
        return {_without_secrets(key): _without_secrets(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_secrets(value) for value in data]
    return _HOME.sub("~", redact(data)) if isinstance(data, str) else data


def _copy(source: Path, to: Path) -> None:
    """Copy a file, if there is one."""
    if source.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)


def _is_xz(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_XZ)) == _XZ


def _pack(root: Path, study: str, to: Path) -> None:
    paths = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    # a report may have tables in formats of the user's own, which unpacking would refuse
    paths = {n: p for n, p in paths.items() if _NAMES.fullmatch(n) or not n.startswith("reports/")}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    _check_fitting(sizes)
    files = {name: sha256(path) for name, path in sorted(paths.items())}
    contents = Contents(study=study, files=files).model_dump_json(indent=2).encode()
    with tarfile.open(to, "w:xz") as archive:
        _add(archive, f"{study}/{BUNDLE}", io.BytesIO(contents), len(contents))
        for name in files:
            with paths[name].open("rb") as file:
                _add(archive, f"{study}/{name}", file, sizes[name])


def _check_fitting(sizes: dict[str, int]) -> None:
    """Refuse to write a bundle that unpacking would refuse.

    Raises:
        UserError: A file's name or size isn't allowed, or there are too many files or bytes.
    """
    for name, size in sizes.items():
        if not _NAMES.fullmatch(name):
            raise UserError(f"{name}: can't be in a bundle; allowed are names of 200 letters")
        if size > _largest(name):
            raise UserError(f"{name}: {size:,} bytes; a bundle takes {_largest(name):,}")
    if sum(sizes.values()) > _MOST or len(sizes) > _MOST_FILES:
        raise UserError(
            f"{len(sizes):,} files of {sum(sizes.values()):,} bytes; a bundle takes "
            f"{_MOST_FILES:,} of {_MOST:,}; leave figures out of the study, or split it"
        )


def _largest(name: str) -> int:
    """Return the largest allowed size of a bundle's file, in bytes."""
    if name.endswith(".yaml"):
        return LARGEST_YAML
    return _LARGEST_RECORD if name.endswith((".json", ".jsonl", ".log")) else _LARGEST


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)  # of user 0, mode 644, and time 0
    member.size = size
    archive.addfile(member, file)


class _Unsound(Exception):
    """Raised when an archive's content isn't a bundle's."""


class _Archive:
    """Sequential reader of a compressed tar archive of regular files.

    Uses only tarfile's parser of headers: tarfile's readers follow links, fill the holes of sparse
    files, and read attributes in full, however long the archive says they are.

    Args:
        file: The compressed archive.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)

    def read(self, size: int) -> bytes:
        """Read a number of bytes.

        Raises:
            _Unsound: The archive ends early.
        """
        content = bytearray()
        while len(content) < size:
            content += self._decompressed(size - len(content))
        return bytes(content)

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield a member's content piece by piece, and read the padding of its last block."""
        for start in range(0, size, _PIECE):
            yield self.read(min(_PIECE, size - start))
        self.read(-size % _BLOCK)

    def members(self) -> Iterator[tuple[str, int]]:
        """Yield name and size of each member, whose content must be read before the next one.

        Raises:
            _Unsound: A member isn't a regular file or is too large, or the layout isn't a bundle's.
        """
        while any(header := self.read(_BLOCK)):
            member, name = tarfile.TarInfo.frombuf(header, "utf-8", "strict"), None
            if member.type == tarfile.XHDTYPE:
                name = self._long_name(member.size)
                member = tarfile.TarInfo.frombuf(self.read(_BLOCK), "utf-8", "strict")
            name = name or member.name
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise _Unsound(f"unexpected: {name}")
            if not 0 <= member.size <= _LARGEST:
                raise _Unsound(f"{name}: {member.size:,} bytes")
            yield name, member.size
        self._end()

    def _end(self) -> None:
        """Read the padding of the last record, and refuse anything after it."""
        left = tarfile.RECORDSIZE
        while not self._xz.eof:
            rest = self._decompressed(left + 1, last=True)
            left -= len(rest)
            if any(rest) or left < 0:
                raise _Unsound("it goes on after its end")
        if self._xz.unused_data or self._file.read(1):
            raise _Unsound("it goes on after its end")

    def _long_name(self, size: int) -> str:
        """Return the path in an extended header, its only use in a bundle."""
        if not 0 <= size <= 4 * _BLOCK:
            raise _Unsound("a header of a kind that no bundle has")
        record = b"".join(self.pieces(size))
        match = _LONG_NAME.fullmatch(record)
        if match is None or int(match[1]) != size:
            raise _Unsound("a header of a kind that no bundle has")
        return match[2].decode()

    def _decompressed(self, most: int, *, last: bool = False) -> bytes:
        content = b""
        while not content:
            if self._xz.eof:
                if last:
                    break
                raise _Unsound("it ends early")
            fed = self._file.read(_PIECE) if self._xz.needs_input else b""
            if self._xz.needs_input and not fed:
                raise _Unsound("it ends early")
            content = self._xz.decompress(fed, most)
        return content


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    """Open a bundle for sequential reading; turn all errors of its content into user errors."""
    try:
        if path.exists() and not path.is_file():
            raise _Unsound("not a file")
        with path.open("rb") as file:
            yield _Archive(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (tarfile.TarError, lzma.LZMAError, UnicodeError, _Unsound) as error:
        raise UserError(
            f"{path}: damaged, or not a bundle ({printable(error)[:_SHOWN]}); "
            "`ofq bundle STUDY` makes bundles"
        ) from None


def _read_contents(archive: _Archive, members: Iterator[tuple[str, int]]) -> Contents:
    name, size = next(members, ("", 0))
    if not name.endswith(f"/{BUNDLE}") or size > 4 * _LARGEST_RECORD:
        raise _Unsound(f"it doesn't begin with {BUNDLE}")
    text = b"".join(archive.pieces(size))
    if text.count(b",") + text.count(b":") > 3 * _MOST_FILES:  # parsing it could take much memory
        raise _Unsound(f"more than {_MOST_FILES:,} files")
    try:
        contents = Contents.model_validate_json(text)
    except ValidationError as error:
        raise _Unsound(f"{name}: {error.errors()[0]['msg']}") from None
    if name != f"{contents.study}/{BUNDLE}":
        raise _Unsound(f"{name}: of another study, {contents.study}")
    if len({path.casefold() for path in contents.files}) < len(contents.files):
        raise _Unsound("names that differ in upper and lower case alone")
    report = f"reports/{contents.study}/"
    for path in contents.files:
        if path.startswith("reports/") and not path.startswith(report):
            raise _Unsound(f"unexpected: {path}")
    return contents


def _unpack(
    archive: _Archive,
    members: Iterator[tuple[str, int]],
    contents: Contents,
    folder: Path,
    room: int,
) -> None:
    """Write the files listed in a bundle's contents; refuse missing and unlisted ones."""
    missing = dict(contents.files)
    for member, size in members:
        name = member.removeprefix(f"{contents.study}/")
        if name == member or name not in missing:
            raise _Unsound(f"unexpected: {member}")
        room -= size
        if size > _largest(name) or room < 0:
            raise _Unsound(f"{member}: more than there may be, or more than half the disk has free")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if _write(archive.pieces(size), path) != missing.pop(name):
            raise _Unsound(f"{member}: its SHA-256 is another")
    if missing:
        raise _Unsound(f"missing: {next(iter(missing))}")


def _write(pieces: Iterator[bytes], path: Path) -> str:
    """Write a file, and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("xb") as target:
        for piece in pieces:
            digest.update(piece)
            target.write(piece)
    return digest.hexdigest()


def _check_content(folder: Path, contents: Contents) -> None:
    """Refuse an unpacked bundle whose config or records can't be read.

    Raises:
        _Unsound: A file can't be read.
    """
    workspace = Workspace(folder)
    try:
        for name in contents.files:
            if name.endswith(".json") and not isinstance(
                read_json((folder / name).read_bytes(), name), dict
            ):
                raise _Unsound(f"{name}: not a JSON object")
        workspace.references(contents.study)
        workspace.claims(contents.study)
        workspace.grid(contents.study)
    except UserError as error:
        text = str(error).replace(f"{folder}/", "")
        raise _Unsound(text.partition("\n")[0]) from None
