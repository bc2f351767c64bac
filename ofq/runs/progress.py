"""Progress display of a run: a bar in a terminal, plain lines elsewhere."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Batch = TypeVar("Batch", bound=tuple[Any, ...])

_LINES = 10  # printed per evaluation

_MEASURES = {
    "top1": "top-1 {:.2f} %",
    "top5": "top-5 {:.2f} %",
    "loss": "loss {:.4f}",
    "oscillation_rate": "oscillation rate {:.2f} %",
    "frozen": "frozen {:.2f} %",
}


def summary(metrics: dict[str, Any]) -> str:
    """Format an epoch's main measures as one line."""
    parts = [form.format(metrics[key]) for key, form in _MEASURES.items() if key in metrics]
    return "  ".join(parts)


class SteadyConsole(Console):
    """Console whose write errors, such as a closed pipe or a full disk, end no run."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does; ignore errors of the output."""
        with suppress(OSError):
            super().print(*objects, **how)

    def on_broken_pipe(self) -> None:
        """Discard further output, where rich would exit."""
        self.quiet = True
        # else flushing the stream at exit would fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Lines:
    """Progress as one line per epoch, for logs and pipes.

    Args:
        console: Where to print.
        epochs: Number of epochs.
    """

    def __init__(self, console: Console, epochs: int) -> None:
        self.console = console
        self.epochs = epochs

    def begin(self, done: int | None, total: int) -> None:
        """Print where training starts or resumes."""
        text = f"training {total} steps" if done is None else f"resuming after step {done}/{total}"
        self.console.print(text, highlight=False)

    def step(self, step: int) -> None:
        """Print nothing."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Print the epoch's line."""
        where = f"epoch {metrics['epoch']}/{self.epochs}"
        self.console.print(f"{where}  {summary(metrics)}", highlight=False, soft_wrap=True)

    def end(self) -> None:
        """Print nothing."""


class Bar:
    """Progress bar over steps, with the last epoch's measures beside it.

    Args:
        console: A terminal.
        epochs: Number of epochs.
    """

    def __init__(self, console: Console, epochs: int) -> None:
        self.epochs = epochs
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[measures]}"),
            console=console,
        )
        self.task = self.bar.add_task("", epoch=f"0/{epochs}", measures="")

    def begin(self, done: int | None, total: int) -> None:
        """Show the bar."""
        self.bar.update(self.task, total=total, completed=done or 0)
        self.bar.start()

    def step(self, step: int) -> None:
        """Advance the bar."""
        self.bar.update(self.task, completed=step)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Show the epoch's measures."""
        epoch = f"{metrics['epoch']}/{self.epochs}"
        self.bar.update(self.task, epoch=epoch, measures=summary(metrics))

    def end(self) -> None:
        """Stop updating the bar, and leave it on the screen."""
        self.bar.stop()


def display(console: Console, epochs: int) -> Bar | Lines:
    """Return a bar if the console is a terminal, else lines."""
    return Bar(console, epochs) if console.is_terminal else Lines(console, epochs)


def counted(console: Console, batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """Yield batches unchanged, and show progress: a bar in a terminal, else occasional lines.

    Args:
        console: Shows the progress.
        batches: Batches whose first part has a length.
        images: Total number of images.
    """
    return (_with_bar if console.is_terminal else _with_lines)(console, batches, images)


def _with_bar(console: Console, batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn("evaluating"), *columns, console=console) as bar:
        task = bar.add_task("", total=images)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch[0]))


def _with_lines(console: Console, batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    console.print(f"evaluating {images} images", highlight=False)
    done = 0
    for batch in batches:
        yield batch
        before, done = done, done + len(batch[0])
        if _LINES * before // images < _LINES * done // images:
            console.print(f"image {done}/{images}", highlight=False)
