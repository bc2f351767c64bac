"""What the run was made from: the runs that it builds on, and files of the user's own."""

from collections.abc import Iterator

from ofq.doctor.finding import Finding, ok, problem, warning
from ofq.doctor.patient import Patient
from ofq.errors import UserError
from ofq.tracking.folder import RESULT, WEIGHTS, sha256
from ofq.tracking.provenance import module_sha256


def check_inputs(patient: Patient) -> Iterator[Finding]:
    """Its parents are complete, and all that it was made from is still as it was then."""
    parents = _parents(patient)
    for name in parents:
        if not all((patient.runs / name / file).exists() for file in (RESULT, WEIGHTS)):
            finding = warning if patient.done else problem
            yield finding(f"{name}, which it builds on, isn't complete", f"ofq train {name}")
    recorded = (patient.read("provenance.json") or {}).get("inputs")
    if recorded is None and parents and patient.done:
        todo = f"nothing, if no doubt is left of them; else {patient.anew}"
        yield warning("the weights that it builds on aren't on record", todo)
    if not isinstance(recorded, dict):
        return  # the checks of the record say so
    for name, expected in recorded.items():
        weights = patient.runs / name / WEIGHTS
        try:
            path = weights if name in parents else patient.workspace.own_file(name)
        except UserError as error:
            todo = "mend the path where it stands, or the variable that it names"
            yield warning(f"{name}, which the run was made from, can't be found: {error}", todo)
            continue
        if path.is_file() and sha256(path) == expected:
            yield ok(f"{name} is as it was")
        elif path.is_file():
            yield problem(f"{path} isn't what the run was made from (SHA-256)", patient.anew)
        elif name not in parents:
            yield warning(f"{path}, which the run was made from, is missing", "put it back")


def check_module(patient: Patient) -> Iterator[Finding]:
    """The user's own module is still as it was, in all attempts and now."""
    attempts = (patient.read("provenance.json") or {}).get("attempts")
    attempts = attempts if isinstance(attempts, list) else []
    known_of = [attempt.get("module") for attempt in attempts if isinstance(attempt, dict)]
    own = [module for module in known_of if isinstance(module, dict)]
    own = [module for module in own if {"name", "sha256"} <= module.keys()]
    if not own or not all(isinstance(part, str) for module in own for part in module.values()):
        return
    name, known = own[-1]["name"], {module["sha256"] for module in own}
    now = module_sha256(name)
    if now is None:
        text = f"{name}, by which the run was made, isn't found"
        yield warning(text, "put its folder on PYTHONPATH")
    elif known == {now}:
        yield ok(f"{name} is as it was")
    else:
        yield warning(
            f"{name} has changed since the run began; its name doesn't tell", patient.anew
        )


def _parents(patient: Patient) -> list[str]:
    """The runs whose weights it starts from and is taught by."""
    description = patient.read("run.json") or {}
    names = (description.get("parent"), description.get("teacher"))
    return list(dict.fromkeys(name for name in names if name and isinstance(name, str)))
