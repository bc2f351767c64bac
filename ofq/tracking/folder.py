"""The run folder: the one true record of a run, as plain files.

========================  ==========================================================
``run.json``              the run's id and its whole resolved config
``provenance.json``       code, versions, machine and command of each attempt
``events.jsonl``          each start, resumption, interruption, failure and the end
``metrics.jsonl``         one row per epoch, appended while training
``layers.jsonl``          one row per epoch, layer and role
``trajectories.jsonl``    one row per recorded step and weight, if the recipe asks for it
``histograms.jsonl``      one row per recorded epoch, role and bits, likewise
``sign_changes.jsonl``    one row per epoch, role and boundary range, likewise
``joint_flips.jsonl``     one row per epoch and attention layer, likewise
``noise.jsonl``           one row per draw of injected noise, and one without (step 0)
``progress.json``         how far a running attempt is
``lock-N.json``           who writes the folder in the Nth attempt (``.free``: nobody now)
``checkpoint/``           resumable state; removed when the run has finished
``model.safetensors``     final weights
``metrics.parquet`` …     the tables above, written at the end
``correct.npy``           a bit per evaluation image: whether the final model is right
``result.json``           the final numbers, written last: with it, the run is complete
``packed.json``           bytes of the model's packed file, and in full precision, if exported
``sealed/``               the same final files once more, as hard links
``unpacked``              the folder is a bundle's record, without weights
========================  ==========================================================
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from ofq.atomic import write_file, write_json
from ofq.credentials import redact
from ofq.errors import LASTING, UserError
from ofq.tracking.lock import holder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Table = Literal[
    "metrics", "layers", "trajectories", "histograms", "sign_changes", "joint_flips", "noise"
]
State = Literal["waiting", "running", "interrupted", "failed", "done"]
WEIGHTS = "model.safetensors"
RESULT = "result.json"
CORRECT = "correct.npy"
PACKED = "packed.json"
SEALED = "sealed"
UNPACKED = "unpacked"
_RETIRED = {"trajectories"}  # keys of older configs that decided no number
TABLES: tuple[Table, ...] = get_args(Table)
REPORTED = (
    "run.json",
    "provenance.json",
    RESULT,
    CORRECT,
    PACKED,
    *(f"{table}.parquet" for table in TABLES),
)
"""The files of a finished run that say where its numbers come from, and that reports read."""

_log = logging.getLogger(__name__)


def agrees(stored: Any, config: Any) -> bool:
    """Whether a config is the stored one; keys that came later, with the default, may be added."""
    if isinstance(stored, dict) and isinstance(config, dict):
        lasting = stored.keys() - _RETIRED
        return all(key in config and agrees(stored[key], config[key]) for key in lasting)
    return bool(stored == config)


class RunFolder:
    """Reads and writes one run folder.

    Args:
        path: The folder; it need not exist before :meth:`open`.

    Attributes:
        guard: Called before each write; raises if this process may not write the folder (any more).
        warn: Told of each torn line, once; by default, logs it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.guard: Callable[[], None] = lambda: None
        self.warn: Callable[[str], None] = _log.warning
        self._said: set[tuple[str, int]] = set()

    def make(self) -> None:
        """Create the folder.

        Raises:
            UserError: It mayn't be written.
            OSError: It can't be for now, as on a full disk.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".{os.getpid()}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            if error.errno not in LASTING:
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

    def description(self) -> dict[str, Any]:
        """What ``run.json`` holds."""
        return self._json("run.json")

    def provenance(self) -> dict[str, Any]:
        """What ``provenance.json`` holds: facts of the run, and its ``attempts``, oldest first."""
        return self._json("provenance.json")

    def attempts(self) -> list[dict[str, Any]]:
        """Provenance of each attempt so far, oldest first."""
        exists = (self.path / "provenance.json").exists()
        return self.provenance()["attempts"] if exists else []

    def progress(self) -> dict[str, Any]:
        """What ``progress.json`` holds; nothing before the first heartbeat."""
        return self._json("progress.json") if (self.path / "progress.json").exists() else {}

    def result(self) -> dict[str, Any] | None:
        """The final numbers, or None while the run isn't complete."""
        return self._json(RESULT) if (self.path / RESULT).exists() else None

    def sizes(self) -> dict[str, int]:
        """Bytes of the model's packed file (``packed_bytes``) and of its weights in full precision.

        Nothing for a run that was never exported.
        """
        return self._json(PACKED) if (self.path / PACKED).exists() else {}

    def complete(self) -> bool:
        """Whether the run has ended, with its numbers and its weights."""
        return self.result() is not None and (self.path / WEIGHTS).exists()

    def is_record(self) -> bool:
        """Whether this is the record of a run that has ended, without its weights."""
        ended = self.result() is not None and not (self.path / WEIGHTS).exists()
        return (self.path / UNPACKED).exists() or (ended and bool(self.damaged()))

    def correct(self) -> "NDArray[np.bool_] | None":
        """Which evaluation images the final model is right about, (images,) in their order.

        None for a run without: a regression, or one from before this was recorded.

        Raises:
            UserError: The file is damaged, or isn't of as many images as the result tells of.
        """
        import numpy as np

        path, result = self.path / CORRECT, self.result()
        if result is None or not path.exists():
            return None
        try:
            bits = np.unpackbits(np.load(path), count=result["images"]).astype(np.bool_)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); `ofq doctor` says what to do") from None
        if bits.sum() != result["correct"]:
            raise UserError(
                f"{path}: tells of {bits.sum()} right images, but {RESULT} of {result['correct']}; "
                "`ofq doctor` says what to do"
            )
        return bits

    def state(self) -> State:
        """What has become of the run; ``running`` only while its trainer shows signs of life."""
        if self.result() is not None:
            return "done"
        if self._is_written():
            return "running"
        events = self.events()
        if not events:
            return "waiting"
        return "failed" if events[-1]["event"] == "failed" else "interrupted"

    def append(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to a table, in one write that is on the disk when this returns."""
        self._append(f"{table}.jsonl", rows)

    def event(self, kind: str, **facts: Any) -> None:
        """Note that something happened to the run now; credentials in the facts are redacted."""
        said = {key: redact(v) if isinstance(v, str) else v for key, v in facts.items()}
        self._append("events.jsonl", [{"event": kind, "time": time.time(), **said}])

    def events(self) -> list[dict[str, Any]]:
        """All that happened to the run, in order."""
        return self._rows("events.jsonl")

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """A table's rows so far, in order; a torn line is left out, and logged."""
        return self._rows(f"{table}.jsonl")

    def torn(self, name: str) -> list[int]:
        """Numbers of the lines of one of the ``.jsonl`` files that a crash has torn, from 1."""
        return [n for n, row in enumerate(self._lines(name), 1) if row is None]

    def write_json(self, name: str, data: Any) -> None:
        """Replace one of the folder's JSON files."""
        self.guard()
        write_json(self.path / name, data)

    def rewind(self, step: int | None) -> None:
        """Drop what was recorded after a step, or all of it, so that each step stands once."""
        for table in TABLES:
            path = self.path / f"{table}.jsonl"
            if path.exists():
                kept = [r for r in self.rows(table) if step is not None and r["step"] <= step]
                text = "".join(json.dumps(row) + "\n" for row in kept)
                self.guard()
                write_file(path, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]

    def finish(
        self,
        result: dict[str, Any],
        save_weights: Callable[[Path], None],
        correct: "NDArray[np.bool_] | None" = None,
    ) -> None:
        """Write weights, final tables and, last, ``result.json``.

        All of it lies sealed before any of it is in its place, so that the files can be put back
        if they are deleted: Snakemake does so when it was killed while the job ran.

        Args:
            result: The final numbers; the files' SHA-256 are added.
            save_weights: Writes the weights to a path.
            correct: Which evaluation images are right, (images,); kept as one bit each.
        """
        sealed = self.path / SEALED
        self.guard()
        sealed.mkdir(exist_ok=True)
        write_file(sealed / WEIGHTS, save_weights)
        for table in TABLES:
            self._write_parquet(table, sealed)
        _write_bits(correct, sealed / CORRECT)
        hashes = {path.name: sha256(path) for path in sorted(sealed.iterdir()) if _final(path)}
        self.guard()
        write_json(sealed / RESULT, {**result, "sha256": hashes})
        self._publish()

    def restore(self) -> bool:
        """Put a finished run's files back from where they lie sealed; whether that was possible."""
        if self.complete() or self.damaged():
            return self.complete()
        self._publish()
        return True

    def damaged(self) -> list[str]:
        """The sealed files that are missing or aren't what was written; all, if none was."""
        try:
            expected = json.loads((self.path / SEALED / RESULT).read_text())["sha256"]
        except (FileNotFoundError, ValueError, KeyError):
            return [RESULT]
        paths = {name: self.path / SEALED / name for name in expected}
        return [n for n, p in paths.items() if not p.exists() or sha256(p) != expected[n]]

    def _publish(self) -> None:
        sealed = self.path / SEALED
        names = [path.name for path in sorted(sealed.iterdir()) if _final(path)]
        self.guard()
        for name in [*names, RESULT]:
            write_file(self.path / name, lambda to, name=name: _link(sealed / name, to))  # type: ignore[misc]

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
        """Remove what a killed writer left half-written."""
        for folder in (self.path, self.path / "checkpoint", self.path / SEALED):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; is {self.path} a run folder?") from None
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from None

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
        rows = self._lines(name)
        for number, row in enumerate(rows, 1):
            if row is None and (name, number) not in self._said:
                self._said.add((name, number))
                self.warn(f"{self.path / name}:{number}: torn by a crash, left out")
        return [row for row in rows if row is not None]

    def _lines(self, name: str) -> list[dict[str, Any] | None]:
        """Each line's row, or None for a torn one."""
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n") and self._is_written():
            del lines[-1]  # on its way, not torn
        return [_parsed(line) for line in lines]

    def _is_written(self) -> bool:
        held = holder(self.path) if self.path.exists() else None
        return held is not None and held.alive()


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _final(path: Path) -> bool:
    return path.name in (WEIGHTS, CORRECT) or path.suffix == ".parquet"


def _write_bits(flags: "NDArray[np.bool_] | None", path: Path) -> None:
    """Write flags as packed bits, if there are any."""
    if flags is None:
        path.unlink(missing_ok=True)
        return
    import numpy as np

    def save(to: Path) -> None:
        with to.open("wb") as file:  # given a path, NumPy would add an ending to its name
            np.save(file, np.packbits(flags))

    write_file(path, save)


def _link(source: Path, to: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


def _ends_a_line(file: BinaryIO) -> bool:
    """Whether a file's last line is whole; a crash may have torn it."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A row, or None for a torn one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
