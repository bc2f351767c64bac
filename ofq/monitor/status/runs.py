"""Status of a study's runs: a poll reads each folder at most once, and done ones no more."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ofq.config import Cell, Grid, Run, Workspace
from ofq.config.fields import State
from ofq.console import printable
from ofq.errors import UserError
from ofq.runs.attempt import run_folder
from ofq.runs.folder import RunFolder
from ofq.runs.own_code import Hashes, OwnCode, made_with_of

STATES: tuple[State, ...] = ("done", "running", "interrupted", "failed", "waiting")

_TAIL = 16_384  # bytes at a log's end that are searched for its last error


@dataclass(frozen=True)
class Failure:
    """Cause of a run's failure, and the remedy: a command first."""

    error: str
    todo: str


@dataclass(frozen=True)
class RunStatus:
    """Status of a run when it was read.

    Attributes:
        state: Its state.
        step, total: Progress of a running one; 0 of 0 before its first heartbeat.
        pace: Seconds per step of a running one, if they are known yet.
        seconds: Time of a finished one over all its attempts.
        failure: The failure of a failed one.
        changed: Modules of the user's own that have changed since it was made.
    """

    state: State
    step: int = 0
    total: int = 0
    pace: float | None = None
    seconds: float | None = None
    failure: Failure | None = None
    changed: tuple[str, ...] = ()

    @property
    def left(self) -> float | None:
        """Seconds until a running run has made its steps; None if unknown."""
        return None if self.pace is None else (self.total - self.step) * self.pace


@dataclass(frozen=True)
class Row:
    """Cell with the runs that are counted in its row."""

    cell: Cell
    runs: tuple[Run, ...]


class StudyStatus:
    """Status of a study, polled repeatedly.

    Args:
        workspace: The checkout of its run folders and logs.
        study: Its name.

    Attributes:
        grid: Its cells.
        runs: All its runs by id, parents first.
        rows: A row per cell, model after model.
    """

    def __init__(self, workspace: Workspace, study: str) -> None:
        self.workspace = workspace
        self.grid = workspace.grid(study)
        self.runs = self.grid.runs()
        self.rows = _rows(self.grid)
        self._folders = {name: _folder(workspace, run) for name, run in self.runs.items()}
        self._groups = {name.rpartition("/")[0] for name in self.runs}
        self._done: dict[str, RunStatus] = {}
        self._made_with: dict[str, dict[str, list[Hashes]]] = {}

    def read(self) -> dict[str, RunStatus]:
        """Return each run's present status."""
        begun = _listed(self.workspace.results / "runs", self._groups)
        logged = _listed(self.workspace.logs, self._groups)
        statuses: dict[str, RunStatus] = {}
        code = OwnCode()
        for name, folder in self._folders.items():
            status = (
                self._done.get(name) or _status_of(name, folder)
                if name in begun
                else RunStatus("waiting")
            )
            if status.state == "waiting" and f"{name}.log" in logged:
                status = _never_began(name, self.log(name)) or status
            if status.state == "done":
                self._done[name] = status
            changed = self._changed(name, status, code)
            statuses[name] = replace(status, changed=changed) if changed else status
        return statuses

    def _changed(self, name: str, status: RunStatus, code: OwnCode) -> tuple[str, ...]:
        """Return the modules that have changed since a run was made; read a done one once."""
        run = self.runs[name]
        if not run.config.modules or status.state == "waiting" or self.workspace.is_bundle:
            return ()
        known = self._made_with.get(name) if status.state == "done" else None
        if known is None:
            known = self._made_with[name] = made_with_of(self._folders[name], run)
        return tuple(code.changed(known))

    def log(self, name: str) -> Path:
        """Return the log file of a run's job, if the workflow started it."""
        return self.workspace.logs / f"{name}.log"


def last_error(log: Path) -> str | None:
    """Return the last error line of a log; None if there is no error."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    texts = [line for line in lines if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in texts if line.startswith("error:")]
    if errors:
        return errors[-1]
    return texts[-1] if any(line.startswith("Traceback") for line in texts) else None


def _rows(grid: Grid) -> list[Row]:
    """Return each cell with its last runs, and the earlier stages that no cell ends with.

    So a run that several cells build on is counted in one row, and a row that waits for others
    shows it.
    """
    taken = {run.id for cell in grid.cells for run in cell.runs}
    rows = []
    for cell in grid.cells:
        runs = {run.id: run for last in cell.runs for run in reversed(list(last.chain()))}
        last = {run.id for run in cell.runs}
        kept = {name: run for name, run in runs.items() if name in last or name not in taken}
        taken.update(kept)
        rows.append(Row(cell, tuple(kept.values())))
    models = list(dict.fromkeys(cell.model for cell in grid.cells))
    return sorted(rows, key=lambda row: models.index(row.cell.model))


def _listed(root: Path, groups: Iterable[str]) -> set[str]:
    """Return the content of ``root/DATASET/MODEL``, as ``DATASET/MODEL/NAME``."""
    names: set[str] = set()
    for group in groups:
        with suppress(FileNotFoundError):
            names.update(f"{group}/{name}" for name in os.listdir(root / group))
    return names


def _folder(workspace: Workspace, run: Run) -> RunFolder:
    folder = run_folder(workspace, run)
    folder.warn = lambda text: None  # `ofq doctor` reports what a crash has torn
    return folder


def _status_of(name: str, folder: RunFolder) -> RunStatus:
    """Return the status of a run whose folder exists."""
    try:
        record = folder.record()
        if record is not None:
            record.check_places()
            return RunStatus("done", seconds=record.seconds)
        state = folder.state()
        if state == "running":
            return _running(folder)
        return RunStatus(state, failure=_failure(name, folder) if state == "failed" else None)
    except (UserError, OSError) as error:
        first = str(error).partition("\n")[0]
        return RunStatus("failed", failure=Failure(printable(first), f"ofq doctor {name}"))


def _never_began(name: str, log: Path) -> RunStatus | None:
    """Return the status of a job that failed before its folder existed, known from its log."""
    try:
        error = last_error(log)
    except OSError as unreadable:
        error = f"{log}: {unreadable.strerror}"
    return RunStatus("failed", failure=Failure(printable(error), _retry(name))) if error else None


def _running(folder: RunFolder) -> RunStatus:
    try:
        progress = folder.progress()
        step, total = progress.get("step", 0), progress.get("total", 0)
        return RunStatus("running", step, total, progress.get("seconds_per_step"))
    except UserError:  # the state is known without it; `ofq doctor` reports it
        return RunStatus("running")


def _failure(name: str, folder: RunFolder) -> Failure:
    last = folder.events()[-1]
    by_its_numbers = "code" in last
    again = f"ofq train {name} --again  once more; or change its recipe or method"
    error = str(last.get("cause")).partition("\n")[0]
    return Failure(printable(error), again if by_its_numbers else _retry(name))


def _retry(name: str) -> str:
    return f"ofq train {name}  once that is mended"
