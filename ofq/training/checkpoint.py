"""Checkpoints: resumable training state, written atomically, hashed; the last two are kept."""

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
from ofq.runs.checkpoints import FORMAT, checkpoint_name, counted_rows, examine, manifests

_KEPT = 2


class Tables(Protocol):
    """Growing tables of a run, whose rows a checkpoint counts on."""

    def grown(self) -> dict[str, dict[str, Any]]:
        """Return rows, bytes and SHA-256 of each table now."""

    def check_grown(self, counted: dict[str, dict[str, Any]], checkpoint: str) -> None:
        """Raise ``UserError`` if rows are lost since :meth:`grown` returned ``counted``."""


class CheckpointStore:
    """Store of one run's checkpoints.

    A checkpoint is ``step-N.pt`` and, written after it, ``step-N.json`` with its SHA-256 and the
    rows that it counts on; without the latter it is ignored.

    Args:
        folder: The folder of checkpoints; created on the first save.
        guard: Called before each write; raises if this process doesn't hold the run's lock.
        warn: Called with a sentence for each checkpoint that can't be used.
        tables: The tables that grow with the training, if rows are recorded.
        facts: Facts of the run's data, saved with each checkpoint; None to save none.
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
            OSError: It can't be written; earlier checkpoints are unchanged.
        """
        if self._facts is not None:
            state = {**state, "data": self._facts.record()}
        self._guard()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{checkpoint_name(step)}.pt"
        hashes: list[str] = []
        write_file(path, lambda temporary: hashes.append(_save(state, temporary)))
        self._guard()
        manifest = {"format": FORMAT, "step": step, "sha256": hashes[0]}
        if self._tables is not None:
            manifest["tables"] = self._tables.grown()
        write_json(path.with_suffix(".json"), manifest)
        self._keep(manifests(self.folder)[-_KEPT:])

    def load(self) -> dict[str, Any] | None:
        """Load the newest undamaged state on the CPU; warn of damaged ones and remove them.

        None if there is no checkpoint. The errors below remove nothing.

        Raises:
            OtherFormat: It was written by another version of this package.
            UserError: It holds no state, or that of a training on other data, or rows that it
                counts on are lost.
            OSError: It can't be read.
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
        facts = facts_in(state.get("data"), str(path))
        difference = self._facts.difference(facts) if self._facts and facts else None
        if difference:
            raise UserError(f"{path}: of a training on other data: {difference}; put those back")
        return state

    def clear(self) -> None:
        """Remove all checkpoints."""
        self._guard()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, manifests: list[Path]) -> None:
        names = {manifest.stem for manifest in manifests}
        for path in self.folder.glob("step-*"):
            if path.stem not in names:
                path.unlink(missing_ok=True)


class NoCheckpoints(CheckpointStore):
    """Store without checkpoints, for ranks 1 to N - 1, which get their state from rank 0."""

    def __init__(self) -> None:
        super().__init__(Path())

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save nothing."""

    def load(self) -> None:
        """Return None, so that the state comes from rank 0."""

    def clear(self) -> None:
        """Remove nothing."""


class _Hashing:
    """File that hashes what is written to it, which is cheaper and safer than reading it back."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:  # torch would report only that writing failed
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def _without_checksums() -> Iterator[None]:
    """Turn off torch's checksums, which cost a sixth of a save and repeat the SHA-256."""
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
