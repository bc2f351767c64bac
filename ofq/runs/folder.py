"""Run folder: the authoritative record of a run, as plain files.

========================  ==========================================================
``run.json``              the run's id and its whole resolved config
``provenance.json``       code, versions, machine and command of each attempt
``events.jsonl``          starts, resumptions, interruptions, failures and the end
``metrics.jsonl``         one row per epoch, appended while training
``layers.jsonl``          one row per epoch, layer and role
``trajectories.jsonl``    one row per probed step and weight, if the recipe asks for it
``histograms.jsonl``      one row per probed epoch, role and bits, if asked for
``sign_changes.jsonl``    one row per epoch, role and boundary range, if asked for
``joint_flips.jsonl``     one row per epoch and attention layer, if asked for
``activations.jsonl``     one row per epoch and quantized activation, if asked for
``noise.jsonl``           one row per draw of injected noise, and one without (step 0)
``progress.json``         current step and pace of a running attempt
``lock-N.json``           the writer in the Nth attempt (``.free``: released)
``checkpoint/``           resumable state; removed when the run has finished
``model.safetensors``     final weights
``metrics.parquet`` …     the tables above, written at the end
``correct.npy``           one bit per evaluation image: whether the final model is right
``result.json``           the final numbers, written last: with it, the run is complete
``packed.json``           bytes of the model's packed file, and in full precision, if exported
``manifest.json``         size and SHA-256 of each final file (:mod:`ofq.runs.record`)
``sealed/``               copies of the final files, the manifest among them
``unpacked``              the folder is a bundle's record, without weights
========================  ==========================================================
"""

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ofq.atomic import write_file, write_json, write_text
from ofq.config.fields import State
from ofq.errors import PERMANENT_ERRNOS, UserError
from ofq.redact import redact
from ofq.runs.lock import holder
from ofq.runs.record import (
    CORRECT,
    DESCRIPTION,
    MANIFEST,
    PACKED,
    PROVENANCE,
    RESULT,
    TABLES,
    TRACKER,
    UNPACKED,
    WEIGHTS,
    Damaged,
    FileFacts,
    Record,
    Table,
    check_begun,
    check_description,
    facts_of,
    opened,
    read_manifest,
    read_object,
    write_manifest,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CORRECT", "DESCRIPTION", "EVENTS", "MANIFEST", "PACKED", "PROVENANCE", "REPORTED", "RESULT",
    "SEALED", "TABLES", "TRACKER", "UNPACKED", "WEIGHTS", "RunFolder", "Table", "agrees",
    "same_rows", "sha256",
]  # fmt: skip

SEALED = "sealed"
_RETIRED = {"trajectories"}  # keys of older configs that decided no number
REPORTED = (
    DESCRIPTION,
    PROVENANCE,
    MANIFEST,
    RESULT,
    CORRECT,
    PACKED,
    *(f"{table}.parquet" for table in TABLES),
)
"""Files of a finished run that document its numbers and their origin; reports read them."""

EVENTS = "events.jsonl"
_LONGEST_LINE = 1 << 24
_BLOCK = 1 << 20
_HUGE = re.compile(rb"(?<![.\d])\d{19,}")  # a number that no column of whole numbers can hold

_log = logging.getLogger(__name__)


def agrees(stored: Any, config: Any) -> bool:
    """Return whether a config equals the stored one, apart from keys added or retired since."""
    if isinstance(stored, dict) and isinstance(config, dict):
        lasting = stored.keys() - _RETIRED
        return all(key in config and agrees(stored[key], config[key]) for key in lasting)
    return bool(stored == config)


class RunFolder:
    """Reader and writer of one run folder.

    Args:
        path: The folder; need not exist before :meth:`open`.

    Attributes:
        guard: Called before each write; raises if this process doesn't hold the folder's lock.
        warn: Called once for each torn line, with a message; logs it by default.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.guard: Callable[[], None] = lambda: None
        self.warn: Callable[[str], None] = _log.warning
        self._said: set[tuple[str, int]] = set()

    def make(self) -> None:
        """Create the folder.

        Raises:
            UserError: This user may not write it.
            OSError: It can't be written for now, as on a full disk.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".{os.getpid()}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            if error.errno not in PERMANENT_ERRNOS:
                raise
            raise UserError(
                f"{self.path}: can't write the run folder: {error.strerror}; "
                "mend its permissions, or set 'results' in config/config.yaml to another folder"
            ) from None

    def open(self, description: dict[str, Any]) -> None:
        """Create the folder and its ``run.json``.

        Raises:
            UserError: The folder can't be written, or it holds a run of another config.
        """
        self.make()
        self._remove_leftovers()
        if (self.path / "run.json").exists():
            self._check(description)
        else:
            self.write_json("run.json", description)

    def record(self) -> Record | None:
        """Open the final files; None while the run isn't finished.

        Raises:
            Damaged: ``result.json`` or the manifest is damaged.
        """
        return Record.open(self.path)

    def description(self) -> dict[str, Any]:
        """Return the content of ``run.json``.

        Raises:
            UserError: It is damaged or missing.
        """
        record = self.record()
        if record is not None:
            return record.description()
        content = self._json(DESCRIPTION)
        check_description(self.path / DESCRIPTION, content)
        return content

    def provenance(self) -> dict[str, Any]:
        """Return the content of ``provenance.json``: facts of the run, and its ``attempts``.

        Raises:
            UserError: It is damaged or missing.
        """
        record = self.record()
        if record is not None:
            return record.written_provenance()
        content = self._json(PROVENANCE)
        check_begun(self.path / PROVENANCE, content)
        return content

    def attempts(self) -> list[dict[str, Any]]:
        """Return the provenance of each attempt so far, oldest first."""
        exists = os.path.lexists(self.path / PROVENANCE)
        return self.provenance()["attempts"] if exists else []

    def progress(self) -> dict[str, Any]:
        """Return the content of ``progress.json``; empty before the first heartbeat.

        Raises:
            Damaged: Its content isn't what a trainer writes.
        """
        path = self.path / "progress.json"
        try:
            content = read_object(path)
        except FileNotFoundError:
            return {}
        step, total, pace = map(content.get, ("step", "total", "seconds_per_step"))
        if not _is_count(step) or not _is_count(total) or not (pace is None or _is_time(pace)):
            raise Damaged(path, "isn't the progress of a run")
        return content

    def verify(self, name: str) -> None:
        """Verify a final file by its hash; does nothing while the run isn't finished.

        Raises:
            Damaged: The file isn't what the run wrote.
        """
        record = self.record()
        if record is not None:
            record.verify(name)

    def result(self) -> dict[str, Any] | None:
        """Return the content of ``result.json``; None while the run isn't finished.

        Raises:
            Damaged: It isn't what the run wrote.
        """
        record = self.record()
        return None if record is None else record.content

    def sizes(self) -> dict[str, int]:
        """Return bytes of the packed model (``packed_bytes``) and of its full-precision weights.

        Empty for a run that was never exported.
        """
        record = self.record()
        return {} if record is None else record.sizes()

    def complete(self) -> bool:
        """Return whether the run has finished and its result and weights are present."""
        return self.record() is not None and (self.path / WEIGHTS).exists()

    def is_record(self) -> bool:
        """Return whether this is the record of a finished run without its weights."""
        if (self.path / UNPACKED).exists():
            return True
        ended = self.record() is not None and not (self.path / WEIGHTS).exists()
        return ended and bool(self.damaged())

    def correct(self) -> "NDArray[np.bool_] | None":
        """Return whether the final model is right about each evaluation image, (images,), in order.

        None for a regression, and for runs of versions that didn't record it.

        Raises:
            Damaged: The file is damaged, or its number of images differs from the result's.
        """
        record = self.record()
        return None if record is None else record.correct()

    def state(self) -> State:
        """Return the run's state; ``running`` only while its trainer's heartbeat is recent."""
        if self.record() is not None:
            return "done"
        if self._is_written():
            return "running"
        events = self.events()
        if not events:
            return "waiting"
        return "failed" if events[-1]["event"] == "failed" else "interrupted"

    def append(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows to a table in one write, and flush it to the disk."""
        self._append(f"{table}.jsonl", rows)

    def event(self, kind: str, **facts: Any) -> None:
        """Append an event to ``events.jsonl``, with the time; redact credentials in the facts."""
        redacted = {key: redact(v) if isinstance(v, str) else v for key, v in facts.items()}
        self._append(EVENTS, [{"event": kind, "time": time.time(), **redacted}])

    def events(self) -> list[dict[str, Any]]:
        """Return all events of the run, in order."""
        return self._rows(EVENTS)

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """Return a table's rows so far, in order; torn lines are skipped and reported."""
        return self._rows(f"{table}.jsonl")

    def final_rows(self, table: Table) -> list[dict[str, Any]]:
        """Return the rows of a finished run's final table.

        They are read from the ``.jsonl`` file where that holds the same rows.

        Raises:
            Damaged: The final table is damaged.
        """
        record, name = self.record(), f"{table}.parquet"
        ended_with = record is not None and record.has(name)
        final = record.written_table(table).to_pylist() if record and ended_with else []
        rows = self.rows(table)
        return rows if same_rows(final, rows) else final

    def torn(self, name: str) -> list[int]:
        """Return the numbers, from 1, of the unreadable lines of a ``.jsonl`` file.

        A crash tears lines. At most the first thousand are returned.
        """
        return list(islice((n for n, row in self._lines(name) if row is None), 1000))

    def grown(self) -> dict[str, dict[str, Any]]:
        """Return rows, bytes and SHA-256 of each table so far, for a checkpoint's manifest."""
        paths = [self.path / f"{table}.jsonl" for table in TABLES]
        return {path.name: _grown(path) for path in paths if path.exists()}

    def check_grown(self, counted: dict[str, dict[str, Any]], checkpoint: str) -> None:
        """Refuse tables that have lost rows since a checkpoint was saved.

        Args:
            counted: Return value of :meth:`grown` when it was saved.
            checkpoint: The checkpoint's name.

        Raises:
            UserError: Rows are missing or have changed.
        """
        for name, known in counted.items():
            path = self.path / name
            try:
                now = _grown(path, known["bytes"])
            except FileNotFoundError:
                now = {"rows": 0}
            if now != known:
                raise UserError(self._lost_rows(path, now["rows"], known["rows"], checkpoint))

    def check_epochs(self, last: int) -> None:
        """Refuse ``metrics`` without a row for each epoch up to the one that ends at step ``last``.

        Raises:
            UserError: Rows are missing.
        """
        rows = [row for row in self.rows("metrics") if _is_count(row.get("step"))]
        rows = [row for row in rows if row["step"] <= last]
        whole = bool(rows) and rows[-1]["step"] == last
        if not whole or [row.get("epoch") for row in rows] != list(range(len(rows))):
            path = self.path / "metrics.jsonl"
            raise UserError(self._lost_rows(path, len(rows), None, "the newest one"))

    def _lost_rows(self, path: Path, found: int, known: int | None, checkpoint: str) -> str:
        run, where = "/".join(self.path.parts[-3:]), shlex.quote(str(self.path))
        count = "rows that" if known is None else f"the first {known} as"
        return (
            f"{path}: has {found} rows, but not {count} checkpoint {checkpoint} counts on; put "
            "the file back from a backup, or train the run anew: "
            f"mv {where} {where}.damaged && ofq train {run}"
        )

    def write_json(self, name: str, data: Any) -> None:
        """Replace one of the folder's JSON files, and update a finished run's manifest."""
        self.guard()
        if name == PACKED and (self.path / MANIFEST).exists():
            for place in (self.path / SEALED, self.path):
                _write_sizes(place, data)
        else:
            write_json(self.path / name, data)

    def rewind(self, step: int | None) -> None:
        """Drop the rows recorded after a step (all for None), so that no step is recorded twice."""
        for table in TABLES:
            path = self.path / f"{table}.jsonl"
            if path.exists():
                rows = [r for r in self.rows(table) if step is not None and _is_until(r, step)]
                text = "".join(json.dumps(row) + "\n" for row in rows)
                self.guard()
                write_file(path, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]

    def finish(
        self,
        result: dict[str, Any],
        save_weights: Callable[[Path], None],
        correct: "NDArray[np.bool_] | None" = None,
        save_tracker: Callable[[Path], None] | None = None,
    ) -> None:
        """Write weights, final tables, the manifest and, last, ``result.json``.

        All files are written to ``sealed/`` before any is copied to its place, so that they can be
        restored if damaged or deleted: Snakemake deletes outputs after it was killed while the job
        ran. The sealed files are copies, since damage to a link is damage to both.

        Args:
            result: The final numbers; SHA-256 of the files is added.
            save_weights: Writes the weights to a path.
            correct: Whether each evaluation image is right, (images,); stored as one bit each.
            save_tracker: Writes the oscillation tracker's history to a path; None without one.
        """
        sealed = self.path / SEALED
        self.guard()
        sealed.mkdir(exist_ok=True)
        write_file(sealed / WEIGHTS, save_weights)
        if save_tracker is not None:
            write_file(sealed / TRACKER, save_tracker)
        for table in TABLES:
            self._write_parquet(table, sealed)
        _write_bits(correct, sealed / CORRECT)
        files = {path.name: facts_of(path) for path in sorted(sealed.iterdir()) if _final(path)}
        hashes = {name: facts.sha256 for name, facts in files.items()}
        text = json.dumps({**result, "manifest": 1, "sha256": hashes}, indent=2) + "\n"
        for name in (DESCRIPTION, PROVENANCE):
            if (self.path / name).exists():
                _copy(self.path / name, sealed / name)
                files[name] = facts_of(sealed / name)
        digest = hashlib.sha256(text.encode()).hexdigest()
        files[RESULT] = FileFacts(bytes=len(text.encode()), sha256=digest)
        self.guard()
        write_manifest(sealed, files)
        self.guard()
        write_text(sealed / RESULT, text)
        self._publish()

    def restore(self) -> bool:
        """Restore a finished run's files from ``sealed/``; return whether the run is complete."""
        if self.complete() or self.damaged():
            return self.complete()
        self._publish()
        return True

    def damaged(self) -> list[str]:
        """Return the missing or damaged sealed files; ``result.json`` if nothing is sealed."""
        try:
            sealed = Record.open(self.path / SEALED)
        except Damaged as damage:
            return [damage.file]
        if sealed is None or not sealed.content.get("sha256"):
            return [RESULT]
        bad = []
        for name in _sealed_names(sealed):
            try:
                sealed.verify(name)
            except Damaged:
                bad.append(name)
        return bad

    def _publish(self) -> None:
        sealed = Record.open(self.path / SEALED)
        assert sealed is not None
        names = [name for name in _sealed_names(sealed) if name != RESULT]
        self.guard()
        for name in [*names, *([MANIFEST] if sealed.files is not None else []), RESULT]:
            _copy(self.path / SEALED / name, self.path / name)

    def _write_parquet(self, table: Table, folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        rows = self.rows(table)
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            content = pyarrow.table({c: [row.get(c) for row in rows] for c in columns})
            write_file(folder / f"{table}.parquet", lambda to: parquet.write_table(content, to))

    def _check(self, description: dict[str, Any]) -> None:
        if not agrees(self.description()["config"], description["config"]):
            raise UserError(
                f"{self.path}: run.json holds another config than this run's, although both have "
                "one name; move the folder away to train anew"
            )

    def _remove_leftovers(self) -> None:
        """Remove temporary files that a killed writer left behind."""
        for folder in (self.path, self.path / "checkpoint", self.path / SEALED):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            return read_object(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; is {self.path} a run folder?") from None

    def _append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not text:
            return
        self.guard()
        with (self.path / name).open("ab+") as file:
            if file.tell() and not _ends_a_line(file):
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _rows(self, name: str) -> list[dict[str, Any]]:
        rows = []
        for number, row in self._lines(name):
            if row is not None:
                rows.append(row)
            elif (name, number) not in self._said:
                self._said.add((name, number))
                self.warn(f"{self.path / name}:{number}: torn by a crash, left out")
        return rows

    def _lines(self, name: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield the number of each line, from 1, and its row; None for a torn one."""
        try:
            file = opened(self.path / name)
        except FileNotFoundError:
            return
        with file:
            for number, line in enumerate(_bounded_lines(file), 1):
                if not line.endswith(b"\n") and self._is_written():
                    return  # still being written, not torn
                row = _parsed(line)
                wrong = row is not None and name == EVENTS and not _is_event(row)
                yield number, None if wrong else row

    def _is_written(self) -> bool:
        held = holder(self.path) if self.path.exists() else None
        return held is not None and held.alive()


def same_rows(final: list[dict[str, Any]], grown: list[dict[str, Any]]) -> bool:
    """Return whether rows are equal; a final table has all columns in each row."""
    columns = final[0].keys() if final else ()
    filled = [{column: row.get(column) for column in columns} for row in grown]
    return [*map(_comparable, final)] == [*map(_comparable, filled)]


def _comparable(row: dict[str, Any]) -> dict[str, Any]:
    return {key: "NaN" if value != value else value for key, value in row.items()}


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _final(path: Path) -> bool:
    return path.name in (WEIGHTS, TRACKER, CORRECT) or path.suffix == ".parquet"


def _write_bits(flags: "NDArray[np.bool_] | None", path: Path) -> None:
    """Write flags as packed bits; without flags, remove the file."""
    if flags is None:
        path.unlink(missing_ok=True)
        return
    import numpy as np

    def save(to: Path) -> None:
        with to.open("wb") as file:  # given a path, NumPy would add an ending to its name
            np.save(file, np.packbits(flags))

    write_file(path, save)


def _sealed_names(sealed: Record) -> list[str]:
    """Return the names of the sealed files; early versions sealed no description of the run."""
    if sealed.files is not None:
        return sealed.names
    return [name for name in sealed.names if name not in (DESCRIPTION, PROVENANCE)]


def _copy(source: Path, to: Path) -> None:
    write_file(to, lambda temporary: shutil.copyfile(source, temporary))


def _write_sizes(folder: Path, data: Any) -> None:
    """Write ``packed.json`` and its manifest entry, which at no moment names another content."""
    files = read_manifest(folder)
    if files is None:
        return
    text = (json.dumps(data, indent=2) + "\n").encode()
    facts = FileFacts(bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
    path = folder / PACKED
    if files.pop(PACKED, None) is not None:
        write_manifest(folder, files)
    write_text(path, text.decode())
    write_manifest(folder, {**files, PACKED: facts})


def _ends_a_line(file: BinaryIO) -> bool:
    """Return whether a file's last line is whole; a crash may have torn it."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; skip the rest of one that is longer than any row."""
    while line := file.readline(_LONGEST_LINE):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line's row, or None for a torn one."""
    if _HUGE.search(line):
        return None
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _is_event(row: dict[str, Any]) -> bool:
    """Return whether a row is an event with facts of the types that readers expect."""
    cause, seconds, devices = row.get("cause", ""), row.get("seconds", 0), row.get("devices", 0)
    return (
        isinstance(row.get("event"), str)
        and _is_time(row.get("time"))
        and isinstance(cause, str)
        and _is_time(seconds)
        and _is_count(devices)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < float("inf")  # type: ignore[operator]


def _is_until(row: dict[str, Any], step: int) -> bool:
    """Return whether a row was recorded at a step or before."""
    return _is_count(row.get("step")) and row["step"] <= step


def _grown(path: Path, size: int | None = None) -> dict[str, Any]:
    """Return rows, bytes and SHA-256 of a table's file, or of its first ``size`` bytes."""
    digest, rows, left = hashlib.sha256(), 0, size
    with opened(path) as file:
        while part := file.read(_BLOCK if left is None else min(_BLOCK, left)):
            digest.update(part)
            rows += part.count(b"\n")
            left = None if left is None else left - len(part)
        total = file.tell()
    return {"rows": rows, "bytes": total, "sha256": digest.hexdigest()}
