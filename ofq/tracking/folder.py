"""The run folder: the one true record of a run, as plain files.

========================  ==========================================================
``run.json``              the run's id and its whole resolved config
``provenance.json``       commit, versions, host, command (of the last attempt)
``events.jsonl``          each start, resumption, interruption, failure and the end
``metrics.jsonl``         one row per epoch, appended while training
``layers.jsonl``          one row per epoch, layer and role
``trajectories.jsonl``    one row per step and recorded weight, if the recipe asks for it
``checkpoint/``           resumable state; removed when the run has finished
``model.safetensors``     final weights
``metrics.parquet`` …     the tables above, written at the end
``result.json``           the final numbers, written last: with it, the run is complete
========================  ==========================================================
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ofq.atomic import write_file, write_json
from ofq.errors import UserError

Table = Literal["metrics", "layers", "trajectories"]
WEIGHTS = "model.safetensors"
TABLES: tuple[Table, ...] = ("metrics", "layers", "trajectories")


def _agrees(stored: Any, config: Any) -> bool:
    """Whether a config is the stored one; keys that came later, with the default, may be added."""
    if isinstance(stored, dict) and isinstance(config, dict):
        return all(key in config and _agrees(stored[key], config[key]) for key in stored)
    return bool(stored == config)


class RunFolder:
    """Reads and writes one run folder.

    Args:
        path: The folder; it need not exist before :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, description: dict[str, Any]) -> None:
        """Create the folder and its ``run.json``.

        Raises:
            UserError: The folder can't be written, or it holds a run of another config.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / "run.json").exists():
                self._check(description)
            else:
                write_json(self.path / "run.json", description)
        except OSError as error:
            raise UserError(
                f"{self.path}: can't write the run folder: {error.strerror}; "
                "mend its permissions, or set 'results' in config/config.yaml to another folder"
            ) from None

    def description(self) -> dict[str, Any]:
        """What ``run.json`` holds."""
        return self._json("run.json")

    def provenance(self) -> dict[str, Any]:
        """What ``provenance.json`` holds."""
        return self._json("provenance.json")

    def result(self) -> dict[str, Any] | None:
        """The final numbers, or None while the run isn't complete."""
        return self._json("result.json") if (self.path / "result.json").exists() else None

    def complete(self) -> bool:
        """Whether the run has ended, with its numbers and its weights."""
        return self.result() is not None and (self.path / WEIGHTS).exists()

    def append(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to a table, in one write."""
        self._append(f"{table}.jsonl", rows)

    def event(self, kind: str, **facts: Any) -> None:
        """Note that something happened to the run now."""
        self._append("events.jsonl", [{"event": kind, "time": time.time(), **facts}])

    def events(self) -> list[dict[str, Any]]:
        """All that happened to the run, in order."""
        return self._rows("events.jsonl")

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """A table's rows so far, in order; a torn last line is left out."""
        return self._rows(f"{table}.jsonl")

    def rewind(self, step: int | None) -> None:
        """Drop what was recorded after a step, or all of it, so that each step stands once."""
        for table in TABLES:
            path = self.path / f"{table}.jsonl"
            if path.exists():
                kept = [r for r in self.rows(table) if step is not None and r["step"] <= step]
                text = "".join(json.dumps(row) + "\n" for row in kept)
                write_file(path, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]

    def finish(self, result: dict[str, Any]) -> None:
        """Write the final tables, then ``result.json``."""
        import pyarrow
        from pyarrow import parquet

        for table in TABLES:
            rows = self.rows(table)
            if rows:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                data = {c: [row.get(c) for row in rows] for c in columns}
                content = pyarrow.table(data)
                write_file(
                    self.path / f"{table}.parquet",
                    lambda temporary, content=content: parquet.write_table(content, temporary),  # type: ignore[misc]
                )
        write_json(self.path / "result.json", result)

    def _check(self, description: dict[str, Any]) -> None:
        if not _agrees(self.description()["config"], description["config"]):
            raise UserError(
                f"{self.path}: run.json holds another config than this run's, although both have "
                "one name; move the folder away to train anew"
            )

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; is {self.path} a run folder?") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from None

    def _append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not text:
            return
        with (self.path / name).open("ab+") as file:
            if file.tell() and not _ends_a_line(file):
                text = "\n" + text
            file.write(text.encode())

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.exists():
            return []
        return [row for line in path.read_bytes().splitlines() if (row := _parsed(line))]


def _ends_a_line(file: BinaryIO) -> bool:
    """Whether a file's last line is whole; a crash may have torn it."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A row, or None for a torn one."""
    try:
        return json.loads(line)
    except ValueError:
        return None
