"""Checks of a run's inputs: the runs that it builds on, and files of the user's own."""

from collections.abc import Iterator

from ofq.errors import UserError
from ofq.monitor.doctor.examined import ExaminedRun
from ofq.monitor.doctor.finding import Finding, ok, problem, warning
from ofq.runs.folder import RESULT, WEIGHTS, sha256
from ofq.runs.own_code import OwnCode, made_with


def check_inputs(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that the run's parents are complete, and that its inputs haven't changed since."""
    parents = _parents(examined)
    for name in parents:
        if not all((examined.runs / name / file).exists() for file in (RESULT, WEIGHTS)):
            finding = warning if examined.done else problem
            yield finding(f"{name}, which it builds on, isn't complete", f"ofq train {name}")
    recorded = (examined.read("provenance.json") or {}).get("inputs")
    if recorded is None and parents and examined.done:
        todo = f"nothing, if you trust them; else {examined.anew}"
        yield warning("the weights that it builds on aren't on record", todo)
    if not isinstance(recorded, dict):
        return  # the checks of the record report it
    for name, expected in recorded.items():
        weights = examined.runs / name / WEIGHTS
        try:
            path = weights if name in parents else examined.workspace.own_file(name)
        except UserError as error:
            todo = "correct the path in the config, or set the variable that it names"
            yield warning(f"{name}, which the run was made from, can't be found: {error}", todo)
            continue
        if path.is_file() and sha256(path) == expected:
            yield ok(f"{name} is as it was")
        elif path.is_file():
            yield problem(f"{path} isn't what the run was made from (SHA-256)", examined.anew)
        elif name not in parents:
            yield warning(f"{path}, which the run was made from, is missing", "put it back")


def check_module(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that the user's own modules are as they were in the attempts that count."""
    attempts = (examined.read("provenance.json") or {}).get("attempts")
    code = OwnCode()
    known = made_with(attempts, examined.events)
    changed = code.changed(known)
    for name in known:
        if code.now(name)["sha256"] is None:
            text = f"{name}, a module that the run used, isn't found"
            yield warning(text, "put its folder on PYTHONPATH")
        elif name in changed:
            yield warning(
                f"{name} has changed since the run began; its name doesn't tell", examined.anew
            )
        else:
            yield ok(f"{name} is as it was")


def _parents(examined: ExaminedRun) -> list[str]:
    """Return the ids of the run's parent and teacher."""
    description = examined.read("run.json") or {}
    names = (description.get("parent"), description.get("teacher"))
    return list(dict.fromkeys(name for name in names if name and isinstance(name, str)))
