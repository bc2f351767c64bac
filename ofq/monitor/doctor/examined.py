"""Run folder under examination, with helpers that the checks share."""

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
    """Run folder under examination.

    Attributes:
        workspace: The checkout.
        path: The folder.
        id: The run's id.
        run: The run as a study defines it; None if no study does (any more).
        studies: The studies that have it.
    """

    workspace: Workspace
    path: Path
    id: str
    run: Run | None
    studies: list[str]

    @property
    def in_place(self) -> bool:
        """Return whether the folder is where the workflow expects the run."""
        return "/".join(self.path.resolve().parts[-3:]) == self.id

    @property
    def runs(self) -> Path:
        """Folder of the other runs' folders."""
        return self.path.resolve().parents[2] if self.in_place else self.workspace.results / "runs"

    @cached_property
    def folder(self) -> RunFolder:
        """Reader of the folder."""
        folder = RunFolder(self.path)
        folder.warn = lambda text: None  # the checks report it themselves
        return folder

    @cached_property
    def held(self) -> Held | None:
        """Lock on the folder; None also if the lock's place is taken, which a check reports."""
        try:
            return holder(self.path)
        except UserError:
            return None

    @property
    def running(self) -> bool:
        """Return whether a live trainer writes the folder, so that it may be incomplete."""
        held = self.held
        return held is not None and held.owner is not None and held.alive()

    @property
    def done(self) -> bool:
        """Return whether the run claims to be complete."""
        return all((self.path / name).exists() for name in (RESULT, WEIGHTS))

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Events of the run; empty if they can't be read, which a check reports."""
        try:
            return self.folder.events()
        except UserError:
            return []

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the content of one of its JSON files; None if it can't be read."""
        try:
            return read_object(self.path / name)
        except (FileNotFoundError, UserError):
            return None

    @property
    def train(self) -> str:
        """Command that resumes the run, or restores its final files."""
        return f"ofq train {self.id}"

    def put_back(self, name: str) -> str:
        """Return the command that restores a file from its sealed copy, or advice without one."""
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
        """Command that trains the run anew, and keeps the damaged folder."""
        path = shlex.quote(str(self.path))
        return f"mv {path} {path}.damaged && {self.train}"

    @classmethod
    def copy(cls, source: Path, to: Path, names: list[str]) -> str:
        """Return the command that copies files over damaged ones or folders in their place."""
        in_place = [to / name for name in names if (to / name).is_dir()]
        clear = f"{cls.remove(in_place)} && " if in_place else ""
        return clear + shlex.join(["cp", *(str(source / name) for name in names), str(to)])

    @staticmethod
    def remove(paths: Iterable[Path]) -> str:
        """Return the command that removes some files."""
        return "rm -r " + shlex.join(map(str, paths))
