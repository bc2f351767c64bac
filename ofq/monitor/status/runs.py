"""Looking at a study's runs: at most once at each folder per status, and once for all if done."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ofq.config import Cell, Grid, Run, Workspace
from ofq.console import printable
from ofq.errors import UserError
from ofq.runs.attempt import run_folder
from ofq.runs.folder import RunFolder, State

STATES: tuple[State, ...] = ("done", "running", "interrupted", "failed", "waiting")

_TAIL = 16_384  # bytes at a log's end in which its last error is looked for


@dataclass(frozen=True)
class Failure:
    """Why a run failed, and what to do: a command first."""

    error: str
    todo: str


@dataclass(frozen=True)
class RunStatus:
    """A run as it was found.

    Attributes:
        state: What has become of it.
        step, total: How far a running one is; 0 of 0 before its first heartbeat.
        pace: Its seconds per step, if they are known yet.
        seconds: What a finished one took over all its attempts.
        failure: Why a failed one failed.
    """

    state: State
    step: int = 0
    total: int = 0
    pace: float | None = None
    seconds: float | None = None
    failure: Failure | None = None

    @property
    def left(self) -> float | None:
        """Seconds until a running one has made its steps, if that can be said."""
        return None if self.pace is None else (self.total - self.step) * self.pace


@dataclass(frozen=True)
class Row:
    """A cell and those runs that are counted in its row."""

    cell: Cell
    runs: tuple[Run, ...]


class StudyStatus:
    """A study that is looked at again and again.

    Args:
        workspace: Where its run folders and logs are.
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

    def read(self) -> dict[str, RunStatus]:
        """Each run as it is now."""
        begun = _listed(self.workspace.results / "runs", self._groups)
        logged = _listed(self.workspace.logs, self._groups)
        statuses = {}
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
            statuses[name] = status
        return statuses

    def log(self, name: str) -> Path:
        """Where a run's job logs, if the workflow started it."""
        return self.workspace.logs / f"{name}.log"


def last_error(log: Path) -> str | None:
    """The last line of a log that says what went wrong; None if nothing did."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in said if line.startswith("error:")]
    if errors:
        return errors[-1]
    return said[-1] if any(line.startswith("Traceback") for line in said) else None


def _rows(grid: Grid) -> list[Row]:
    """Each cell with its last runs, and with those stages before them that no cell ends with.

    So a run that several cells build on is counted in one row, and a row that waits for others
    says so.
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
    """What lies in ``root/DATASET/MODEL``, as ``DATASET/MODEL/NAME``."""
    found: set[str] = set()
    for group in groups:
        with suppress(FileNotFoundError):
            found.update(f"{group}/{name}" for name in os.listdir(root / group))
    return found


def _folder(workspace: Workspace, run: Run) -> RunFolder:
    folder = run_folder(workspace, run)
    folder.warn = lambda text: None  # what a crash has torn is `ofq doctor`'s matter
    return folder


def _status_of(name: str, folder: RunFolder) -> RunStatus:
    """One run whose folder exists."""
    try:
        state = folder.state()
        record = folder.record() if state == "done" else None
        if record is not None:
            record.check_places()
            return RunStatus("done", seconds=record.seconds)
        if state == "running":
            return _running(folder)
        return RunStatus(state, failure=_failure(name, folder) if state == "failed" else None)
    except (UserError, OSError) as error:
        first = str(error).partition("\n")[0]
        return RunStatus("failed", failure=Failure(printable(first), f"ofq doctor {name}"))


def _never_began(name: str, log: Path) -> RunStatus | None:
    """A job that failed before it could note so in its folder: its log alone tells."""
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
    except UserError:  # of no consequence; `ofq doctor` tells of it
        return RunStatus("running")


def _failure(name: str, folder: RunFolder) -> Failure:
    last = folder.events()[-1]
    by_its_numbers = "code" in last
    again = f"ofq train {name} --again  once more; or change its recipe or method"
    error = str(last.get("cause")).partition("\n")[0]
    return Failure(printable(error), again if by_its_numbers else _retry(name))


def _retry(name: str) -> str:
    return f"ofq train {name}  once that is mended"
