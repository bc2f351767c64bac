"""Mirroring of many run folders and reports, one after the other, past failures of some."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ofq.config import Workspace
from ofq.config.files import suggest
from ofq.errors import UserError
from ofq.redact import redact_uri
from ofq.runs.folder import RunFolder
from ofq.tracking.mirror import Mirror
from ofq.tracking.mirroring import reason

_LINES = 10  # printed outside a terminal


@dataclass(frozen=True)
class Item:
    """A run folder or a report that can be mirrored.

    Attributes:
        kind: ``run`` or ``report``.
        name: The run's id or the study's name, as ``ofq track sync`` takes it.
        send: Function that mirrors it.
    """

    kind: str
    name: str
    send: Callable[[Mirror], None]


def find_items(workspace: Workspace, names: list[str]) -> list[Item]:
    """Find the runs and reports to mirror.

    Args:
        workspace: Holds studies, run folders and reports.
        names: Studies, and ids of runs, which need not be in a study any more; all if empty.

    Raises:
        UserError: A name is neither, or a named study is invalid.
    """
    runs = run_ids(workspace)
    if not names:
        return [_run(workspace, run) for run in runs] + _reports(workspace, workspace.study_names)
    chosen: dict[tuple[str, str], Item] = {}
    for name in names:
        if name in workspace.study_names:
            of_study = [run for run in workspace.grid(name).runs() if run in runs]
            items = [_run(workspace, run) for run in of_study] + _reports(workspace, [name])
        elif name in runs:
            items = [_run(workspace, name)]
        else:
            hint = suggest(name, [*workspace.study_names, *runs])
            raise UserError(f"'{name}' is neither a study nor a run that was started ({hint})")
        chosen |= {(item.kind, item.name): item for item in items}
    return list(chosen.values())


def run_ids(workspace: Workspace) -> list[str]:
    """Return the ids of all runs that have a folder, including those in no study any more."""
    root = workspace.results / "runs"
    return sorted(str(path.parent.relative_to(root)) for path in root.glob("*/*/*/run.json"))


def sync_items(mirror: Mirror, items: list[Item], console: Console) -> list[Item]:
    """Mirror runs and reports; continue after a failure, unless the server doesn't answer.

    Args:
        mirror: The mirror.
        items: Runs and reports.
        console: Shows progress and failures.

    Returns:
        The items that remain to be mirrored.

    Raises:
        UserError: The store is of another MLflow's schema.
    """
    remaining: list[Item] = []
    silence = _silence(mirror)
    with _Shown(console, len(items)) as shown:
        for done, item in enumerate(items):
            if silence is not None:
                shown.say(f"stopped, since {redact_uri(mirror.uri)} can't be used: {silence}")
                return remaining + items[done:]
            problem = _send(mirror, item)
            if problem is not None:
                remaining.append(item)
                shown.say(f"{item.kind} {item.name}: {problem}")
                silence = _silence(mirror)
            shown.step(done + 1)
    return remaining


class _Shown:
    """Progress display: a bar in a terminal, else occasional lines."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        columns = (TextColumn("mirroring"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "_Shown":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def step(self, done: int) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done)
        elif _LINES * done // self._total > _LINES * (done - 1) // self._total:
            self.say(f"mirrored {done}/{self._total}")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _send(mirror: Mirror, item: Item) -> str | None:
    """Mirror one item, with a second try, since servers are busy at times; return the error."""
    problem = None
    for _ in range(2):
        try:
            item.send(mirror)
            return None
        except Exception as error:  # MLflow lets through what any of its libraries raises
            problem = reason(error)
    return problem


def _silence(mirror: Mirror) -> str | None:
    """Return why a store can't be used; None if it can."""
    try:
        mirror.check()
    except UserError:
        raise
    except Exception as error:  # as above
        return reason(error)
    return None


def _run(workspace: Workspace, run_id: str) -> Item:
    folder = RunFolder(workspace.results / "runs" / run_id)
    return Item("run", run_id, lambda mirror: mirror.sync(folder))


def _reports(workspace: Workspace, studies: list[str]) -> list[Item]:
    return [
        Item("report", study, _sending(study, workspace.reports / study))
        for study in studies
        if (workspace.reports / study / "index.html").exists()
    ]


def _sending(study: str, page: Path) -> Callable[[Mirror], None]:
    def send(mirror: Mirror) -> None:
        mirror.sync_report(study, page)

    return send
