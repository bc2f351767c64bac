"""The run folder that is examined, and what its checks have in common."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ofq.config import Run, Workspace
from ofq.errors import UserError
from ofq.runs.folder import RESULT, SEALED, WEIGHTS, RunFolder
from ofq.runs.lock import Held, holder
from ofq.runs.record import Record, read_object


@dataclass(frozen=True)
class ExaminedRun:
    """A run folder.

    Attributes:
        workspace: The checkout.
        path: The folder.
        id: The run's id.
        run: The run as a study has it; None if none has it (any more).
        studies: The studies that have it.
    """

    workspace: Workspace
    path: Path
    id: str
    run: Run | None
    studies: list[str]

    @property
    def in_place(self) -> bool:
        """Whether the folder is where the workflow looks for the run."""
        return "/".join(self.path.resolve().parts[-3:]) == self.id

    @property
    def runs(self) -> Path:
        """Where other runs' folders are."""
        return self.path.resolve().parents[2] if self.in_place else self.workspace.results / "runs"

    @cached_property
    def folder(self) -> RunFolder:
        """The folder, to be read."""
        folder = RunFolder(self.path)
        folder.warn = lambda text: None  # the checks say it themselves
        return folder

    @cached_property
    def held(self) -> Held | None:
        """The lock on it; None too if another thing is in its place, which a check tells of."""
        try:
            return holder(self.path)
        except UserError:
            return None

    @property
    def running(self) -> bool:
        """Whether a living trainer writes it, so that it may look unfinished at any moment."""
        held = self.held
        return held is not None and held.owner is not None and held.alive()

    @property
    def done(self) -> bool:
        """Whether it claims to be complete."""
        return all((self.path / name).exists() for name in (RESULT, WEIGHTS))

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What happened to the run; nothing if that can't be read, which a check tells of."""
        try:
            return self.folder.events()
        except UserError:
            return []

    def read(self, name: str) -> dict[str, Any] | None:
        """One of its JSON files, if it can be read."""
        try:
            return read_object(self.path / name)
        except (FileNotFoundError, UserError):
            return None

    @property
    def train(self) -> str:
        """The command that goes on with the run, or puts its final files back."""
        return f"ofq train {self.id}"

    def put_back(self, name: str) -> str:
        """The command that puts a file back from its sealed copy, or what to do without one."""
        sealed = self.path / SEALED
        try:
            record = Record.open(sealed)
            if record is not None and record.files is not None:
                record.verify(name)
                return self.copy(sealed, self.path, [name])
        except UserError:
            pass
        return f"put it back from a backup, or {self.anew}"

    @property
    def anew(self) -> str:
        """The command that trains it anew, and keeps what there is."""
        path = shlex.quote(str(self.path))
        return f"mv {path} {path}.damaged && {self.train}"

    @classmethod
    def copy(cls, source: Path, to: Path, names: list[str]) -> str:
        """The command that copies files over damaged ones, or over what is in their place."""
        in_place = [to / name for name in names if (to / name).is_dir()]
        clear = f"{cls.remove(in_place)} && " if in_place else ""
        return clear + shlex.join(["cp", *(str(source / name) for name in names), str(to)])

    @staticmethod
    def remove(paths: Iterable[Path]) -> str:
        """The command that removes some files."""
        return "rm -r " + shlex.join(map(str, paths))
