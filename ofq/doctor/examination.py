"""All checks of a run folder, one after the other."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ofq.doctor.files import check_access, check_checkpoints, check_final_files, check_leftovers
from ofq.doctor.finding import Finding, ok, warning
from ofq.doctor.identity import check_identity, check_lock
from ofq.doctor.inputs import check_inputs, check_module
from ofq.doctor.patient import Patient
from ofq.doctor.records import check_events, check_provenance
from ofq.doctor.tables import check_tables
from ofq.errors import UserError
from ofq.study import Run, Workspace
from ofq.tracking.folder import UNPACKED

_CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    check_identity,
    check_lock,
    check_provenance,
    check_events,
    check_tables,
    check_final_files,
    check_checkpoints,
    check_inputs,
    check_module,
    check_leftovers,
)


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a run folder."""

    name: str
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        """Whether there is no problem."""
        return not any(finding.level == "problem" for finding in self.findings)


def examine(workspace: Workspace, name: str) -> Diagnosis:
    """Check a run folder; changes nothing in it.

    Args:
        workspace: The checkout.
        name: A run's id, or the path of a run folder.

    Raises:
        UserError: There is neither such a run nor such a folder.
    """
    patient = _patient(workspace, name)
    if not patient.path.is_dir():
        return Diagnosis(patient.id, [warning("the run hasn't begun", patient.train)])
    if (patient.path / UNPACKED).exists():
        text = (
            "a record out of a bundle, without weights: reports read it, and nothing trains over it"
        )
        return Diagnosis(patient.id, [ok(text)])
    denied = list(check_access(patient))
    findings = denied or [finding for check in _CHECKS for finding in check(patient)]
    return Diagnosis(patient.id, findings)


def _patient(workspace: Workspace, name: str) -> Patient:
    path = Path(name) if Path(name).is_dir() else workspace.results / "runs" / name
    run_id = "/".join(path.resolve().parts[-3:])
    run, studies = _find(workspace, run_id)
    if run is None and path.is_dir():  # of no study any more, or a folder that was moved elsewhere
        run_id = _recorded_id(path)
        run, studies = _find(workspace, run_id)
    elif run is None:
        raise UserError(
            f"'{name}' is neither a run folder nor a run of a study under config/; "
            "`ofq runs STUDY` lists a study's runs"
        )
    return Patient(workspace, path, run_id, run, studies)


def _recorded_id(path: Path) -> str:
    try:
        return str(json.loads((path / "run.json").read_bytes())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: isn't a run folder: no study has a run of this place, and there is no "
            "run.json that names one"
        ) from None


def _find(workspace: Workspace, run_id: str) -> tuple[Run | None, list[str]]:
    try:
        return workspace.find(run_id)
    except UserError:
        return None, []
