"""Manifests of checkpoints, and their verification; doesn't import torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ofq.errors import UserError
from ofq.runs.record import TABLES

FORMAT = 3
"""Version of the state's layout; incremented when that changes, so that none is misread."""


_TABLES = {f"{table}.jsonl" for table in TABLES}
_UNREADABLE = (FileNotFoundError, IsADirectoryError, ValueError, RecursionError)


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's files, without ending."""
    return f"step-{step:09d}"


def manifests(folder: Path) -> list[Path]:
    """Return the ``step-N.json`` of each checkpoint in a folder, oldest first."""
    return sorted(folder.glob("step-*.json"))


class OtherFormat(UserError):
    """Error: an undamaged checkpoint has a format that this version can't read."""

    def __init__(self, path: Path, form: object) -> None:
        super().__init__(
            f"{path} is of format {form}, this version reads format {FORMAT}: go on with the "
            f"version that made it, or begin again after `rm -r {path.parent}`"
        )


def examine(manifest: Path) -> str | None:
    """Return what is wrong with a checkpoint, given its ``step-N.json``; None if nothing is.

    Raises:
        OtherFormat: It was written by another version.
        OSError: It can't be reached; it may be intact.
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
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == expected else "is damaged: its SHA-256 is another"


def counted_rows(manifest: Path) -> dict[str, dict[str, Any]]:
    """Return rows, bytes and SHA-256 of each table that a checkpoint counts on, by file name.

    Empty for checkpoints of versions that didn't record them.

    Raises:
        ValueError: The manifest's entry for them is malformed.
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
