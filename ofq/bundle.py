"""Bundles: a study's records, config and report in one file, from which its report is made anew.

A bundle is a tar archive, compressed by xz, of one folder that is named like the study and laid out
like a checkout::

    STUDY/bundle.json       what it is: :class:`Contents`, with each file's SHA-256
    STUDY/config/           the study, what it extends, its recipe, references and all methods
    STUDY/results/runs/     of each run, the files that the report is made of; no weights
    STUDY/logs/train/       the logs of runs that haven't finished
    STUDY/reports/STUDY/    the report

The same records make the same bytes: members are sorted and have neither time nor owner.
"""

import hashlib
import io
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, ValidationError

from ofq.atomic import write_file, write_text
from ofq.errors import UserError
from ofq.study import Workspace
from ofq.study.fields import Name
from ofq.study.files import Strict
from ofq.tracking import RunFolder
from ofq.tracking.folder import REPORTED, UNPACKED, sha256
from ofq.tracking.sent import copy_run_ids

if TYPE_CHECKING:
    from ofq.report.collect import Records

ENDING = ".tar.xz"
"""How a bundle's name ends."""

_CONTENTS = "bundle.json"
_UNFINISHED = ("run.json", "events.jsonl")  # they tell why a run's numbers are missing
_FOLDERS = ("config", "results", "logs", "reports")


def _inside(path: str) -> str:
    folder, *parts = path.split("/")
    if folder not in _FOLDERS or not parts or {"", ".", ".."}.intersection(parts):
        raise ValueError(f"no file of a bundle lies in {path}")
    return path


class Contents(Strict):
    """What ``bundle.json`` says.

    Attributes:
        format: Version of the layout.
        study: Name of the study.
        files: SHA-256 of each other file, by its path in the bundle's folder.
    """

    format: Literal[1] = 1
    study: Name
    files: dict[Annotated[str, AfterValidator(_inside)], str]


def bundle(workspace: Workspace, study: str, path: Path) -> "Records":
    """Write a study's bundle.

    Its report is made from what the bundle holds, and nothing else. A run that is being trained
    counts as interrupted in it.

    Args:
        workspace: The checkout.
        study: The study's name; one of its cells at least has a finished run.
        path: The file to write, which appears when it is whole.

    Returns:
        What its report was made from.

    Raises:
        UserError: The study is wrong, or has no report (:func:`ofq.report.build`); or the file's
            folder isn't there.
    """
    if not path.parent.is_dir() and path.parent != workspace.reports:
        raise UserError(f"{path}: expected a file in a folder that exists")
    from ofq.report.write import write_report  # takes a second, which unpacking needn't wait for

    with tempfile.TemporaryDirectory() as name:
        copy = Workspace(Path(name))
        _copy_config(workspace, study, copy)
        _copy_records(workspace, study, copy)
        try:
            records = write_report(copy, study, copy.reports / study)
        except UserError as error:  # found in the copy, to be mended in the original
            text = str(error).replace(str(copy.results), str(workspace.results))
            raise UserError(text.replace(str(copy.root), str(workspace.root))) from None
        for file in set(copy.results.rglob("*.parquet")) - records.curves.files:
            file.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda to: _pack(copy.root, study, to))
    return records


def unbundle(path: Path, out: Path | None = None) -> Workspace:
    """Unpack a bundle into a folder of its own, in which ``ofq report`` makes its report anew.

    Args:
        path: The bundle.
        out: The folder, which appears when it is whole and must not exist before; left out, named
            like the study, in the current folder.

    Returns:
        The folder, as a checkout with one study.

    Raises:
        UserError: The file is missing or damaged, isn't a bundle, or has members that a bundle
            hasn't, such as links or files outside its folder; or ``out`` exists.
    """
    with _opened(path) as archive:
        contents = _read_contents(archive)
        target = out or Path(contents.study)
        if target.exists() or not target.parent.is_dir():
            raise UserError(f"{target}: expected a new folder, in one that exists")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as name:
            whole = Path(name) / contents.study
            _unpack(archive, contents, whole)
            for record in whole.rglob("run.json"):
                record.with_name(UNPACKED).touch()
            whole.rename(target)
    return Workspace(target)


def _copy_config(workspace: Workspace, study: str, copy: Workspace) -> None:
    recipe, config = workspace.study(study).recipe, workspace.root / "config"
    references = [config / "reference" / f"{r}.yaml" for r in workspace.study(study).references]
    files = [*workspace.study_files(study), workspace.recipe_path(recipe), *references]
    for file in (*files, *(config / "methods").glob("*.yaml")):
        _copy(file, copy.root / file.relative_to(workspace.root))
    # not the site's own, which tells of its folders and has other studies
    write_text(copy.root / "config" / "config.yaml", f'studies: ["{study}"]\n')


def _copy_records(workspace: Workspace, study: str, copy: Workspace) -> None:
    for run in workspace.grid(study).runs():
        folder, twin = (RunFolder(place.results / "runs" / run) for place in (workspace, copy))
        finished = folder.result() is not None
        for name in REPORTED if finished else _UNFINISHED:
            _copy(folder.path / name, twin.path / name)
        if finished:
            copy_run_ids(folder, twin)
        else:
            _copy(*(place.logs / f"{run}.log" for place in (workspace, copy)))


def _copy(source: Path, to: Path) -> None:
    """Copy a file, if there is one."""
    if source.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)


def _pack(root: Path, study: str, to: Path) -> None:
    paths = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    files = {name: sha256(path) for name, path in sorted(paths.items())}
    contents = Contents(study=study, files=files).model_dump_json(indent=2).encode()
    with tarfile.open(to, "w:xz") as archive:
        _add(archive, f"{study}/{_CONTENTS}", io.BytesIO(contents), len(contents))
        for name in files:
            with paths[name].open("rb") as file:
                _add(archive, f"{study}/{name}", file, paths[name].stat().st_size)


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)  # of user 0, mode 644, and time 0
    member.size = size
    archive.addfile(member, file)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A bundle for reading from its beginning to its end, whatever is wrong with it."""
    try:
        with tarfile.open(path, "r|xz") as archive:
            yield archive
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, _Unsound) as error:
        raise UserError(
            f"{path}: damaged, or not a bundle ({error}); `ofq bundle STUDY` makes bundles"
        ) from None


class _Unsound(Exception):
    """What an archive holds isn't what a bundle holds."""


def _read_contents(archive: tarfile.TarFile) -> Contents:
    first = archive.next()
    if first is None or not first.isreg() or not first.name.endswith(f"/{_CONTENTS}"):
        raise _Unsound(f"it doesn't begin with {_CONTENTS}")
    try:
        contents = Contents.model_validate_json(_file(archive, first).read())
    except ValidationError as error:
        raise _Unsound(f"{first.name}: {error.errors()[0]['msg']}") from None
    if first.name != f"{contents.study}/{_CONTENTS}":
        raise _Unsound(f"{first.name}: of another study, {contents.study}")
    return contents


def _unpack(archive: tarfile.TarFile, contents: Contents, folder: Path) -> None:
    """Write each file that a bundle's contents name, if the archive has these and no others."""
    missing = dict(contents.files)
    while (member := archive.next()) is not None:
        name = member.name.removeprefix(f"{contents.study}/")
        if name not in missing or not member.isreg():
            raise _Unsound(f"unexpected: {member.name}")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if _write(_file(archive, member), path) != missing.pop(name):
            raise _Unsound(f"{member.name}: its SHA-256 is another")
    if missing:
        raise _Unsound(f"missing: {next(iter(missing))}")


def _file(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    assert file is not None  # it is a regular file
    return file


def _write(file: IO[bytes], path: Path) -> str:
    """Write a file, and give its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as target:
        while part := file.read(1 << 20):
            digest.update(part)
            target.write(part)
    return digest.hexdigest()
