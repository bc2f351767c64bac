"""Observer of a training that writes its reports into the run folder and shows progress."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from ofq.runs.attempt import Attempt
from ofq.runs.folder import Table
from ofq.runs.progress import Bar, Lines

if TYPE_CHECKING:
    from ofq.training.trainer import Trainer


class Recorder:
    """``Observer`` that writes training's reports into the run folder and shows progress.

    Args:
        attempt: The attempt.
        shown: The progress display.
        console: Shows warnings.
    """

    def __init__(self, attempt: Attempt, shown: Bar | Lines, console: Console) -> None:
        self.attempt = attempt
        self.folder = attempt.folder
        self.shown = shown
        self.console = console
        self._steps = 0
        self._seconds = 0.0  # of the steps alone
        self._mark = time.perf_counter()

    def begin(self, done: int | None, total: int, recorded: int) -> None:
        """Drop rows recorded after the checkpoint, and record the start.

        Raises:
            UserError: Rows that the checkpoint counts on are missing.
        """
        if recorded >= 0:
            self.folder.check_epochs(recorded)
        self.folder.rewind(recorded)
        self.folder.event("started" if done is None else "resumed", step=done or 0, total=total)
        self.attempt.begin(done or 0, total)
        self.shown.begin(done, total)
        self._mark = time.perf_counter()

    def step(self, step: int) -> None:
        """Note progress."""
        self.attempt.step(step)
        self.shown.step(step)
        now = time.perf_counter()
        self._steps += 1
        self._seconds += now - self._mark
        self._mark = now

    def epoch(self, metrics: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        """Append an epoch's rows."""
        self.folder.append("layers", layers)
        self.folder.append("metrics", [metrics])
        self.shown.epoch(metrics)
        self._mark = time.perf_counter()

    def recorded(self, table: Table, rows: list[dict[str, Any]]) -> None:
        """Append rows that were recorded over an epoch."""
        self.folder.append(table, rows)

    def unreadable(self, name: str) -> None:
        """Warn of an image that was skipped, and record it."""
        note_unreadable(self.attempt, self.console, name)

    def taught(self, trainer: "Trainer") -> None:
        """Record the teacher's share of the time in this attempt, if it ran in it."""
        teacher = trainer.objective.teacher
        per_pass = teacher.clock.mean() if teacher else None
        if per_pass is not None and self._steps:
            step, teaching = self._seconds / self._steps, per_pass * trainer.passes
            self.folder.event(
                "taught",
                seconds_per_step=round(step, 6),
                teacher_seconds_per_step=round(teaching, 6),
                teacher_share=round(teaching / step, 4),
            )

    def saved(self, step: int) -> None:
        """Mark a checkpoint request as served."""
        self.attempt.saved()
        self._mark = time.perf_counter()

    def warn(self, text: str) -> None:
        """Print a warning, and record it."""
        warn(self.attempt, self.console, text)


def warn(attempt: Attempt, console: Console, text: str) -> None:
    """Print a warning, and record it."""
    _say(console, text)
    attempt.note("warning", text)


def note_unreadable(attempt: Attempt, console: Console, name: str) -> None:
    """Warn of an image that was skipped, and record it."""
    _say(console, f"{name}: not a readable image; it is skipped")
    attempt.folder.event("unreadable", image=name)


def _say(console: Console, text: str) -> None:
    console.print(f"[bold red]warning:[/] {escape(text)}", soft_wrap=True)
