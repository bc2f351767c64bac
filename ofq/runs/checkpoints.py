"""What makes a checkpoint count: its manifest, written after it. Imports nothing of torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ofq.errors import UserError
from ofq.runs.record import TABLES

FORMAT = 3
"""Raised when the state's layout changes, so that an older one isn't misread."""


_TABLES = {f"{table}.jsonl" for table in TABLES}
_UNREADABLE = (FileNotFoundError, IsADirectoryError, ValueError, RecursionError)


def manifests(folder: Path) -> list[Path]:
    """The ``step-N.json`` of each checkpoint in a folder, oldest first."""
    return sorted(folder.glob("step-*.json"))


class OtherFormat(UserError):
    """A checkpoint is of another version of this package; whole, and not to be read by this one."""

    def __init__(self, path: Path, form: object) -> None:
        super().__init__(
            f"{path} is of format {form}, this version reads format {FORMAT}: go on with the "
            f"version that made it, or begin again after `rm -r {path.parent}`"
        )


def examine(manifest: Path) -> str | None:
    """What is wrong with a checkpoint, given its ``step-N.json``; None if nothing is.

    Raises:
        OtherFormat: It is of another version.
        OSError: It can't be reached, which says nothing of it.
    """
    path = manifest.with_suffix(".pt")
    try:
        facts = json.loads(manifest.read_bytes())
        expected, form = facts["sha256"], facts["format"]
        counted_rows(manifest)
    except (*_UNREADABLE, KeyError, TypeError):
        return "is damaged: its .json can't be read"
    if form != FORMAT:
        raise OtherFormat(path, form)
    if not path.is_file():
        return "is missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == expected else "is damaged: its SHA-256 is another"


def counted_rows(manifest: Path) -> dict[str, dict[str, Any]]:
    """Return rows, bytes and SHA-256 of each table that a checkpoint counts on, by file name.

    Nothing for checkpoints of versions that didn't keep them.

    Raises:
        ValueError: The manifest doesn't say so in its form.
    """
    tables = json.loads(manifest.read_bytes()).get("tables", {})
    form = {"rows": int, "bytes": int, "sha256": str}
    if not isinstance(tables, dict) or not all(
        name in _TABLES
        and isinstance(facts, dict)
        and {key: type(value) for key, value in facts.items()} == form
        for name, facts in tables.items()
    ):
        raise ValueError("not the rows that a checkpoint counts on")
    return tables
