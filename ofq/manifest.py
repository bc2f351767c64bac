"""What makes a checkpoint count: its manifest, written after it. Imports nothing of torch."""

import hashlib
import json
from pathlib import Path

from ofq.errors import UserError

FORMAT = 3
"""Raised when the state's layout changes, so that an older one isn't misread."""


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
        facts = json.loads(manifest.read_text())
        expected, form = facts["sha256"], facts["format"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "is damaged: its .json can't be read"
    if form != FORMAT:
        raise OtherFormat(path, form)
    if not path.exists():
        return "is missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == expected else "is damaged: its SHA-256 is another"
