"""Moving run folders away, kept whole, so that the workflow makes the runs again."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from ofq.config import Workspace
from ofq.errors import TryAgain, UserError
from ofq.runs.folder import DESCRIPTION, RESULT
from ofq.runs.lock import LockHeld, RunLock, holder
from ofq.runs.record import read_object

FOLDER = "set_aside"
"""Folder below the results, with a folder per call, named by its time."""

JOB_LOG = "job.log"
"""Name of the log of a run's job in its folder there."""


def with_descendants(workspace: Workspace, runs: Iterable[str]) -> list[str]:
    """Return runs and all recorded ones that build on them, whichever study has them.

    They are known by the ``run.json`` of each folder; children come after their parents.

    Args:
        workspace: The checkout.
        runs: Ids of the runs.
    """
    needs = dict(_recorded(workspace.results / "runs"))
    found = dict.fromkeys(runs)
    while more := [n for n, parents in needs.items() if n not in found and parents & found.keys()]:
        found |= dict.fromkeys(more)
    return [*found]


def _recorded(root: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield each run's id, and those of its parent and its teacher."""
    for path in sorted(root.glob(f"*/*/*/{DESCRIPTION}")):
        try:
            description = read_object(path)
        except (OSError, UserError):  # `ofq doctor` tells of it
            continue
        parents = (description.get("parent"), description.get("teacher"))
        yield "/".join(path.parts[-4:-1]), {name for name in parents if isinstance(name, str)}


def set_aside(workspace: Workspace, runs: list[str], dry_run: bool = False) -> Path | None:
    """Move the folders of runs to a new folder below the results, with the logs of their jobs.

    All of them are locked first, so that no trainer writes one meanwhile.

    Args:
        workspace: The checkout.
        runs: Their ids.
        dry_run: Whether to move nothing.

    Returns:
        The new folder; None without runs.

    Raises:
        TryAgain: One is being written; nothing is moved.
        OSError: A folder can't be moved.
    """
    if not runs:
        return None
    folders = {name: workspace.results / "runs" / name for name in runs}
    _refuse_written(folders)
    place = workspace.results / FOLDER / time.strftime("%Y%m%d-%H%M%S")
    while place.exists():
        place = place.with_name(f"{place.name}-again")
    if dry_run:
        return place
    with ExitStack() as held:
        locks = {name: _locked(folder, held) for name, folder in folders.items()}
        for name in reversed(runs):  # children first: none is left without its parent
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folders[name], target)
            locks[name].folder = target
            with suppress(FileNotFoundError):  # of a run that was trained by hand
                os.rename(workspace.logs / f"{name}.log", target / JOB_LOG)
    return place


def _refuse_written(folders: dict[str, Path]) -> None:
    written = {name: held for name, path in folders.items() if (held := holder(path))}
    lines = [f"{name} is being written by {held}" for name, held in written.items() if held.alive()]
    if lines:
        raise TryAgain("\n".join([*lines, "nothing was moved; try again when they have ended"]))


def _locked(folder: Path, held: ExitStack) -> RunLock:
    """Lock a folder until it has been moved."""
    lock = RunLock(folder)
    try:
        lock.acquire()
    except LockHeld as error:
        raise TryAgain(f"{str(error).partition(';')[0]}; nothing was moved") from None
    held.callback(_unlock, lock)
    return lock


def _unlock(lock: RunLock) -> None:
    if (lock.folder / RESULT).exists():
        lock.remove()
    else:
        lock.release()
