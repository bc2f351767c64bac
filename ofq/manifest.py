"""What makes a checkpoint count: its manifest, written after it. Imports nothing of torch."""

import hashlib
import json
from pathlib import Path

FORMAT = 3
"""Raised when the state's layout changes, so that an older one isn't misread."""


def manifests(folder: Path) -> list[Path]:
    """The ``step-N.json`` of each checkpoint in a folder, oldest first."""
    return sorted(folder.glob("step-*.json"))


def examine(manifest: Path) -> str | None:
    """What is wrong with a checkpoint, given its ``step-N.json``; None if nothing is."""
    path = manifest.with_suffix(".pt")
    try:
        facts = json.loads(manifest.read_text())
        expected, form = facts["sha256"], facts["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return "is damaged: its .json can't be read"
    if form != FORMAT:
        return f"is of format {form}, this version reads format {FORMAT}"
    if not path.exists():
        return "is missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == expected else "is damaged: its SHA-256 is another"
