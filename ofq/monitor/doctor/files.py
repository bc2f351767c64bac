"""Checks of files: final ones, checkpoints, and leftovers."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from ofq.errors import UserError, some
from ofq.monitor.doctor.examined import ExaminedRun
from ofq.monitor.doctor.finding import Finding, ok, problem, warning
from ofq.runs.attempt import CHECKPOINT, SAVE_REQUEST
from ofq.runs.checkpoints import OtherFormat, counted_rows, examine, manifests
from ofq.runs.folder import (
    DESCRIPTION,
    EVENTS,
    MANIFEST,
    PACKED,
    PROVENANCE,
    RESULT,
    SEALED,
    TABLES,
    WEIGHTS,
)
from ofq.runs.record import Damaged, Record, read_manifest, read_object
from ofq.tracking import sent

_NOTES = (EVENTS, "progress.json", "mirror.json", "mirror.log", SAVE_REQUEST)
_BESIDE = (*_NOTES, *(f"{table}.jsonl" for table in TABLES))
_DECLARED = (RESULT, WEIGHTS, "metrics.parquet")  # outputs that the workflow requires of a run


def check_access(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that all files can be read, which the other checks need."""
    paths = [examined.path, *examined.path.rglob("*")]
    denied = [path for path in paths if os.path.lexists(path) and not _may_be_read(path)]
    if denied:
        names = some([str(path.relative_to(examined.path)) for path in denied])
        todo = f"chmod -R u+rX {shlex.quote(str(examined.path))}  by its owner, then examine again"
        yield problem(f"no permission to read {names}", todo)


def _may_be_read(path: Path) -> bool:
    return os.access(path, os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK)


def check_places(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that no folder is in a file's place, and no file in a folder's."""
    files = {*_BESIDE, *(path.name for path in examined.path.glob("lock-*"))}
    for name in sorted(files):
        path = examined.path / name
        if os.path.lexists(path) and not path.is_file():
            rest = "" if examined.done else f" && {examined.train}"
            todo = examined.remove([path]) + rest
            yield problem(f"{name} is a folder or something else, not a file", todo)
    for name in (SEALED, CHECKPOINT):
        path = examined.path / name
        if os.path.lexists(path) and not path.is_dir():
            rest = "" if examined.done else f" && {examined.train}"
            yield problem(f"{name} is a file, not a folder", examined.remove([path]) + rest)


def check_notes(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that the trainer's progress and the mirror's notes can be read."""
    checks = {
        "progress.json": (examined.folder.progress, ""),
        "mirror.json": (
            lambda: sent.check_notes(examined.folder),
            f" && ofq track sync {examined.id}",
        ),
    }
    for name, (check, rest) in checks.items():
        path = examined.path / name
        try:
            if path.is_file():
                check()
        except Damaged as damage:
            yield warning(f"{name}: {damage.fault}", examined.remove([path]) + rest)


def check_final_files(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that the final files are as they were written, in place and sealed."""
    if examined.running:
        return
    own, sealed = _opened(examined.path), _opened(examined.path / SEALED)
    known = sealed or own
    if known is None:
        if os.path.lexists(examined.path / RESULT):
            yield problem(f"{_fault(examined.path) or RESULT}, and isn't sealed", examined.anew)
        return  # else the run hasn't ended
    if known.files is None and "sha256" not in known.content:
        yield from _without_hashes(examined)
        return
    names = _names(known)
    bad = [name for name in names if not _is_as_written(known, examined.path, name)]
    if sealed is None:
        yield from _unsealed(examined, bad, names)
    else:
        broken = [name for name in names if not _is_as_written(known, sealed.folder, name)]
        yield from _sealed(examined, bad, broken)
        if not bad and not broken:
            yield ok(f"{len(names)} final files are whole, and sealed")
    yield from _contents(examined, bad)


def _opened(folder: Path) -> Record | None:
    try:
        return Record.open(folder)
    except UserError:
        return None


def _fault(folder: Path) -> str | None:
    """Return why a record can't be opened; None if it can."""
    try:
        Record.open(folder)
    except Damaged as damage:
        return f"{damage.file}: {damage.fault}"
    return None


def _names(record: Record) -> list[str]:
    """Return the names of the final files that are sealed, ``result.json`` last."""
    if record.files is None:
        names = [name for name in record.names if name not in (DESCRIPTION, PROVENANCE, PACKED)]
    else:
        names = [*record.names, MANIFEST]
    return [*(name for name in names if name != RESULT), RESULT]


def _is_as_written(known: Record, folder: Path, name: str) -> bool:
    """Return whether a file in a folder is the one that a record describes."""
    try:
        if name == MANIFEST:
            return read_manifest(folder) == known.files
        if name == RESULT and known.files is None:
            return read_object(folder / RESULT) == known.content
        Record(folder, known.content, known.files).verify(name)
    except (FileNotFoundError, UserError):
        return False
    return True


def _contents(examined: ExaminedRun, bad: list[str]) -> Iterator[Finding]:
    """Report files that are as they were written, but have invalid content."""
    record = _opened(examined.path)
    if record is None:
        return
    tables = {f"{table}.parquet" for table in TABLES}  # which the check of tables covers
    for fault in record.faults():
        hidden = fault.file in tables and fault.fault != "missing"
        if fault.file not in bad and not hidden and fault.file != PROVENANCE:
            yield problem(f"{fault.file}: {fault.fault}", examined.anew)


def check_checkpoints(examined: ExaminedRun) -> Iterator[Finding]:
    """Check the checkpoints, from which an unfinished run resumes."""
    whole = False
    for manifest in reversed(manifests(examined.path / CHECKPOINT)):
        try:
            wrong = examine(manifest)
        except OtherFormat as other:
            whole = True
            yield problem(f"checkpoint {manifest.stem} is another version's", str(other))
            continue
        if wrong is None:
            lost = None if examined.done or examined.running else _lost_rows(examined, manifest)
            if lost and not whole:
                yield problem(lost, examined.anew)
            whole = True
            yield ok(f"checkpoint {manifest.stem} is whole")
        elif not examined.running:  # a live trainer removes old ones during the check
            text = f"checkpoint {manifest.stem} {wrong}; it is passed over"
            yield warning(text, examined.train)
    sealed = examined.read(f"{SEALED}/{RESULT}") is not None
    if _has_trained(examined) and not (whole or sealed or examined.done or examined.running):
        yield problem("no whole checkpoint: the run begins again at its first step", examined.train)


def _lost_rows(examined: ExaminedRun, manifest: Path) -> str | None:
    """Return which rows are lost that a checkpoint requires; None if none are."""
    try:
        examined.folder.check_grown(counted_rows(manifest), manifest.stem)
    except UserError as lost:
        return str(lost).partition("; put the file back")[0]
    return None


def check_leftovers(examined: ExaminedRun) -> Iterator[Finding]:
    """Check for files left by writers that were killed."""
    if examined.running:
        return
    places = (examined.path, examined.path / CHECKPOINT, examined.path / SEALED)
    left = [
        path for place in places for end in ("tmp", "probe") for path in place.glob(f".*.{end}")
    ]
    states = (examined.path / CHECKPOINT).glob("step-*.pt")
    left += [path for path in states if not path.with_suffix(".json").exists()]
    stale = [SAVE_REQUEST, *(["progress.json"] if examined.done else [])]
    left += [examined.path / name for name in stale if (examined.path / name).exists()]
    if left:
        names = some([path.name for path in left])
        yield warning(f"left by a writer that was killed: {names}", examined.remove(left))


def _has_trained(examined: ExaminedRun) -> bool:
    """Return whether the run has training steps to lose; an evaluation has none."""
    config = (examined.read("run.json") or {}).get("config") or {}
    return (examined.path / "metrics.jsonl").exists() and config.get("training") is not None


def _without_hashes(examined: ExaminedRun) -> Iterator[Finding]:
    missing = [name for name in _DECLARED if not (examined.path / name).exists()]
    if missing:
        yield problem(f"missing: {some(missing)}", examined.anew)
        return
    text = "the final files are from before hashes were kept; they can't be checked"
    yield warning(text, f"nothing, if you trust them; else {examined.anew}")
    yield from _contents(examined, [])


def _unsealed(examined: ExaminedRun, bad: list[str], names: list[str]) -> Iterator[Finding]:
    if bad:
        yield problem(f"missing or damaged, and not sealed: {some(bad)}", examined.anew)
        return
    sealed = shlex.quote(str(examined.path / SEALED))
    files = shlex.join(str(examined.path / name) for name in names)
    clear = f"rm -r {sealed} && " if os.path.lexists(examined.path / SEALED) else ""
    todo = f"{clear}mkdir -p {sealed} && cp {files} {sealed}"
    yield warning("the final files are whole, but not sealed: deleted ones can't be put back", todo)


def _sealed(examined: ExaminedRun, bad: list[str], broken: list[str]) -> Iterator[Finding]:
    """Report final files that are damaged in their place, among the sealed ones, or in both."""
    lost = [name for name in bad if name in broken]
    if lost:
        yield problem(f"damaged, in its place and sealed: {some(lost)}", examined.anew)
    for name in broken:
        if name not in lost:
            text = f"{SEALED}/{name} is missing or damaged; {name} itself is whole"
            yield warning(text, examined.copy(examined.path, examined.path / SEALED, [name]))
    back = [name for name in bad if name not in lost]
    if back and not lost:
        missing = not os.path.lexists(examined.path / RESULT)
        todo = (
            examined.train
            if missing
            else examined.copy(examined.path / SEALED, examined.path, back)
        )
        yield problem(f"missing or damaged, but sealed: {some(back)}", todo)
