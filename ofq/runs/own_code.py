"""Changes of the user's own modules since runs were made with them, told by their hashes.

A run's name is made of its config, not of code, so a changed module makes no new run.
"""

from collections.abc import Mapping
from typing import Any

from ofq.config import Run, Workspace
from ofq.errors import UserError, some
from ofq.runs.attempt import run_folder
from ofq.runs.folder import PROVENANCE, RunFolder
from ofq.runs.provenance import hashes_of_module
from ofq.runs.record import read_object

Hashes = dict[str, str | None]
"""``sha256`` of a module's file and, of a package, ``package_sha256`` of all its files."""


class OwnCode:
    """The user's own modules as they are now; each is hashed once."""

    def __init__(self) -> None:
        self._now: dict[str, Hashes] = {}

    def now(self, module: str) -> Hashes:
        """Return the present hashes of a module; ``sha256`` is None if it isn't found."""
        if module not in self._now:
            self._now[module] = hashes_of_module(module)
        return self._now[module]

    def changed(self, made_with: Mapping[str, list[Hashes]]) -> list[str]:
        """Return the modules that are others now; those that aren't found are left out.

        Args:
            made_with: Result of :func:`made_with`.
        """
        return [
            name
            for name, recorded in made_with.items()
            if (now := self.now(name))["sha256"] is not None
            and any(_differ(then, now) for then in recorded)
        ]


def _differ(then: Hashes, now: Hashes) -> bool:
    keys = ("sha256", "package_sha256")
    return any(then.get(key) not in (None, now.get(key)) for key in keys)


def made_with(attempts: object, events: list[dict[str, Any]]) -> dict[str, list[Hashes]]:
    """Return the hashes of each module in the attempts that a run's present state is made of.

    An attempt that began anew leaves nothing of those before it, such as one that failed over a
    mistake in a module. Records of attempts that can't be read are left out.

    Args:
        attempts: ``attempts`` of its ``provenance.json``.
        events: Its events; empty if they aren't known, so that all attempts count.
    """
    known: dict[str, list[Hashes]] = {}
    for attempt in _counting(attempts if isinstance(attempts, list) else [], events):
        for module in _modules(attempt):
            hashes = {key: module.get(key) for key in ("sha256", "package_sha256")}
            known.setdefault(str(module["name"]), []).append(hashes)
    return known


def _counting(attempts: list[Any], events: list[dict[str, Any]]) -> list[Any]:
    opened, first = 0, 1
    for event in events:
        opened += event["event"] == "opened"
        if event["event"] == "started":
            first = max(1, opened)
    return attempts[first - 1 :]


def _modules(attempt: Any) -> list[dict[str, Any]]:
    """Return name and hashes of an attempt's modules; older attempts have one at most."""
    if not isinstance(attempt, dict):
        return []
    named = attempt.get("modules") or [attempt.get("module")]
    if not isinstance(named, list):
        return []
    keys = ("name", "sha256")
    return [
        m for m in named if isinstance(m, dict) and all(isinstance(m.get(k), str) for k in keys)
    ]


def made_with_of(folder: RunFolder, run: Run) -> dict[str, list[Hashes]]:
    """Return :func:`made_with` of a run's folder; empty without own modules or readable record."""
    if not run.config.modules:
        return {}
    try:
        record = read_object(folder.path / PROVENANCE)
        return made_with(record.get("attempts"), folder.events())
    except (OSError, UserError):  # other checks tell of damage
        return {}


def changed_runs(workspace: Workspace, runs: Mapping[str, Run]) -> dict[str, list[str]]:
    """Return the runs that were made by another version of a module, with its name; parents first.

    An unpacked bundle has no modules, so nothing is known there.
    """
    code, found = OwnCode(), {}
    for name, run in runs.items() if not workspace.is_bundle else ():
        folder = run_folder(workspace, run)
        folder.warn = lambda text: None
        if changed := code.changed(made_with_of(folder, run)):
            found[name] = changed
    return found


def told(study: str, changed: Mapping[str, list[str]]) -> str:
    """Return a sentence on runs that were made by other code, and what to do; empty for none.

    Args:
        study: The study's name, for the command.
        changed: Result of :func:`changed_runs`.
    """
    if not changed:
        return ""
    names = list(dict.fromkeys(module for modules in changed.values() for module in modules))
    runs = "1 run was" if len(changed) == 1 else f"{len(changed)} runs were"
    return (
        f"{runs} made by another version of {some(names)}, which has changed since; "
        f"ofq retrain {study} --changed makes them again"
    )
