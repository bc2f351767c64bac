"""Resumable training state on disk: whole or not at all, hashed, the last two kept."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from ofq.atomic import write_file, write_json
from ofq.config.datasets import DataFacts, facts_in
from ofq.console import printable
from ofq.errors import UserError
from ofq.runs.checkpoints import FORMAT, counted_rows, examine, manifests

_KEPT = 2


class Tables(Protocol):
    """The growing tables of a run, whose rows a checkpoint counts on."""

    def grown(self) -> dict[str, dict[str, Any]]:
        """Describe the tables as they are now."""

    def check_grown(self, counted: dict[str, dict[str, Any]], checkpoint: str) -> None:
        """Raise ``UserError`` if rows are lost since a checkpoint, given its description."""


class CheckpointStore:
    """The checkpoints of one run.

    A checkpoint is ``step-N.pt`` and, written after it, ``step-N.json`` with its SHA-256 and the
    rows that it counts on; without the latter it doesn't count.

    Args:
        folder: Where they lie; made on the first save.
        guard: Called before each write; raises if this process may not write (any more).
        warn: Told of each checkpoint that can't be used, in a sentence.
        tables: The tables that grow with the training, if rows are recorded.
        facts: What the run sees of its data, which its checkpoints keep; None to keep nothing.
    """

    def __init__(
        self,
        folder: Path,
        guard: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = lambda text: None,
        tables: Tables | None = None,
        facts: DataFacts | None = None,
    ) -> None:
        self.folder = folder
        self._tables = tables
        self._guard = guard
        self._warn = warn
        self._facts = facts

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a state, and remove all but the last two.

        Raises:
            OSError: It can't be written; the checkpoints before it are as they were.
        """
        if self._facts is not None:
            state = {**state, "data": self._facts.record()}
        self._guard()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:09d}.pt"
        hashes: list[str] = []
        write_file(path, lambda temporary: hashes.append(_save(state, temporary)))
        self._guard()
        manifest = {"format": FORMAT, "step": step, "sha256": hashes[0]}
        if self._tables is not None:
            manifest["tables"] = self._tables.grown()
        write_json(path.with_suffix(".json"), manifest)
        self._keep(manifests(self.folder)[-_KEPT:])

    def load(self) -> dict[str, Any] | None:
        """The newest undamaged state, on the CPU, or None; damaged ones are told of and removed.

        Raises:
            OtherFormat: It is of another version of this package; nothing of it is removed.
            UserError: It holds no state, or that of a training on other data, or rows that it
                counts on are lost; likewise.
            OSError: It can't be read; likewise.
        """
        for manifest in reversed(manifests(self.folder)):
            path = manifest.with_suffix(".pt")
            problem = examine(manifest)
            if problem is None:
                if self._tables is not None:
                    self._tables.check_grown(counted_rows(manifest), manifest.stem)
                return self._read(path)
            self._warn(f"checkpoint {path} {problem}; going back to the one before it")
            self._guard()
            manifest.unlink()
            path.unlink(missing_ok=True)
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch raises nearly all kinds
            reason = printable(str(error).partition("\n")[0])
            raise UserError(f"{path}: not a checkpoint of a training: {reason}") from None
        if not isinstance(state, dict):
            raise UserError(f"{path}: not a checkpoint of a training")
        seen = facts_in(state.get("data"), str(path))
        difference = self._facts.difference(seen) if self._facts and seen else None
        if difference:
            raise UserError(f"{path}: of a training on other data: {difference}; put those back")
        return state

    def clear(self) -> None:
        """Remove all checkpoints."""
        self._guard()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, manifests: list[Path]) -> None:
        kept = {manifest.stem for manifest in manifests}
        for path in self.folder.glob("step-*"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)


class NoCheckpoints(CheckpointStore):
    """For processes that get their state from the first one, which alone keeps checkpoints."""

    def __init__(self) -> None:
        super().__init__(Path())

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save nothing."""

    def load(self) -> None:
        """Nothing."""

    def clear(self) -> None:
        """Remove nothing."""


class _Hashing:
    """A file that hashes what is written to it: cheaper, and surer, than reading it again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:  # torch would say no more than that writing failed
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def _without_checksums() -> Iterator[None]:
    """Let torch compute none of its own, which would cost a sixth of a save: there is a SHA-256."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _save(state: dict[str, Any], path: Path) -> str:
    """Write a state and return its SHA-256."""
    with path.open("wb") as file, _without_checksums():
        hashing = _Hashing(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]
        except RuntimeError:
            if hashing.error is None:
                raise
            raise hashing.error from None
        return hashing.hash.hexdigest()
