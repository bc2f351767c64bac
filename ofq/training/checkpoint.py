"""Resumable training state on disk: whole or not at all, hashed, the last two kept."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from ofq.atomic import write_file, write_json

_KEPT = 2


class CheckpointStore:
    """The checkpoints of one run.

    A checkpoint is ``step-N.pt`` and, written after it, ``step-N.json`` with its SHA-256; without
    the latter it doesn't count.

    Args:
        folder: Where they lie; made on the first save.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a state, and remove all but the last two."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:09d}.pt"
        write_file(path, lambda temporary: torch.save(state, temporary))
        write_json(path.with_suffix(".json"), {"sha256": _sha256(path)})
        for old in self._manifests()[:-_KEPT]:
            old.unlink()
            old.with_suffix(".pt").unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest undamaged state, or None; a damaged one is reported and passed over."""
        for manifest in reversed(self._manifests()):
            path = manifest.with_suffix(".pt")
            expected = json.loads(manifest.read_text())["sha256"]
            if path.exists() and _sha256(path) == expected:
                return torch.load(path, weights_only=True)
            warnings.warn(f"{path} is damaged; using the checkpoint before it", stacklevel=2)
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _manifests(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.json"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
