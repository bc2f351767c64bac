"""Examination of a run folder by all checks in turn."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ofq.config import Run, Workspace
from ofq.errors import UserError
from ofq.monitor.doctor.examined import ExaminedRun
from ofq.monitor.doctor.files import (
    check_access,
    check_checkpoints,
    check_final_files,
    check_leftovers,
    check_notes,
    check_places,
)
from ofq.monitor.doctor.finding import Finding, ok, problem, warning
from ofq.monitor.doctor.identity import check_identity, check_lock
from ofq.monitor.doctor.inputs import check_inputs, check_module
from ofq.monitor.doctor.records import check_events, check_provenance
from ofq.monitor.doctor.tables import check_tables
from ofq.runs.folder import UNPACKED
from ofq.runs.record import Damaged, read_object

_CHECKS: tuple[Callable[[ExaminedRun], Iterator[Finding]], ...] = (
    check_places,
    check_identity,
    check_lock,
    check_provenance,
    check_events,
    check_tables,
    check_final_files,
    check_checkpoints,
    check_inputs,
    check_module,
    check_notes,
    check_leftovers,
)


@dataclass(frozen=True)
class Diagnosis:
    """Findings of all checks of a run folder."""

    name: str
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        """Return whether there is no problem."""
        return not any(finding.level == "problem" for finding in self.findings)


def examine(workspace: Workspace, name: str) -> Diagnosis:
    """Check a run folder; change nothing in it.

    Args:
        workspace: The checkout.
        name: A run's id, or the path of a run folder.

    Raises:
        UserError: There is neither such a run nor such a folder.
    """
    examined = _examined(workspace, name)
    if os.path.lexists(examined.path) and not examined.path.is_dir():
        todo = f"{examined.remove([examined.path])} && {examined.train}"
        return Diagnosis(examined.id, [problem(f"{examined.path} is a file, not a folder", todo)])
    if not examined.path.is_dir():
        return Diagnosis(examined.id, [warning("the run hasn't begun", examined.train)])
    if (examined.path / UNPACKED).exists():
        text = (
            "a record out of a bundle, without weights: reports read it, and nothing trains over it"
        )
        return Diagnosis(examined.id, [ok(text), *_unpacked(examined)])
    denied = list(check_access(examined))
    findings = denied or [finding for check in _CHECKS for finding in _checked(check, examined)]
    return Diagnosis(examined.id, findings)


def _checked(
    check: Callable[[ExaminedRun], Iterator[Finding]], examined: ExaminedRun
) -> Iterator[Finding]:
    """Yield a check's findings, or the reason why it can't read the folder."""
    try:
        yield from check(examined)
    except Damaged as damage:
        if (examined.path / damage.file).is_file():  # else the check of places reports it
            yield problem(f"{damage.file}: {damage.fault}", examined.anew)
    except (UserError, OSError) as error:
        yield problem(str(error), examined.anew)


def _unpacked(examined: ExaminedRun) -> Iterator[Finding]:
    """Yield the faults of files that came out of a bundle."""
    todo = "unpack the bundle again, into another folder"
    try:
        record = examined.folder.record()
    except UserError as damage:
        yield problem(str(damage), todo)
        return
    for fault in record.faults() if record is not None else ():
        left_out = fault.fault == "missing" and fault.file.endswith((".parquet", ".safetensors"))
        if not left_out:
            yield problem(f"{fault.file}: {fault.fault}", todo)


def _examined(workspace: Workspace, name: str) -> ExaminedRun:
    path = Path(name) if Path(name).is_dir() else workspace.results / "runs" / name
    run_id = "/".join(path.resolve().parts[-3:])
    run, studies = _find(workspace, run_id)
    if run is None and path.is_dir():  # no study has it any more, or the folder was moved
        run_id = _recorded_id(path)
        run, studies = _find(workspace, run_id)
    elif run is None:
        raise UserError(
            f"'{name}' is neither a run folder nor a run of a study under config/; "
            "`ofq runs STUDY` lists a study's runs"
        )
    return ExaminedRun(workspace, path, run_id, run, studies)


def _recorded_id(path: Path) -> str:
    try:
        return str(read_object(path / "run.json")["id"])
    except (FileNotFoundError, UserError, KeyError):
        raise UserError(
            f"{path}: isn't a run folder: no study has a run of this place, and there is no "
            "run.json that names one"
        ) from None


def _find(workspace: Workspace, run_id: str) -> tuple[Run | None, list[str]]:
    try:
        return workspace.find(run_id)
    except UserError:
        return None, []
