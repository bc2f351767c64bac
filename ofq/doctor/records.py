"""What the folder says of its attempts."""

from collections.abc import Iterator
from typing import Any

from ofq.attempt import ENDINGS
from ofq.doctor.finding import Finding, ok, problem, warning
from ofq.doctor.patient import Patient


def check_provenance(patient: Patient) -> Iterator[Finding]:
    """It is on record by which code, on which machine and by which command the run was made."""
    opened = [event for event in patient.events if event.get("event") == "opened"]
    provenance = patient.read("provenance.json")
    attempts = (provenance or {}).get("attempts")
    if not isinstance(attempts, list) or not attempts:
        path = patient.path / "provenance.json"
        if patient.done:
            todo = f"put it back from a backup, or {patient.anew}"
        else:
            todo = (
                f"{patient.remove([path])} && {patient.train}" if path.exists() else patient.train
            )
        if opened or path.exists() or patient.done:
            yield problem("provenance.json is missing or can't be read", todo)
    elif patient.running or len(attempts) in (len(opened), len(opened) + 1):
        yield ok(f"provenance.json has each attempt ({len(attempts)})")
    else:
        yield warning(f"provenance of {len(attempts)} attempts, but events of {len(opened)}")


def check_events(patient: Patient) -> Iterator[Finding]:
    """Each attempt began and ended, and the last one as the folder looks."""
    torn = patient.folder.torn("events.jsonl")
    if torn:
        yield warning(f"events.jsonl: {_lines(torn)} torn by a crash; readers leave them out")
    if patient.running:
        return
    endless = _endless(patient.events)
    if endless:
        yield warning(f"events.jsonl: the end of {endless} attempts isn't on record")
    elif patient.events:
        yield ok(f"{len(patient.events)} events, each attempt with its end")
    yield from _outcome(patient)


def _outcome(patient: Patient) -> Iterator[Finding]:
    """What became of the last attempt."""
    last: dict[str, Any] = patient.events[-1] if patient.events else {}
    kind, cause = last.get("event"), last.get("cause", "no cause is on record")
    if patient.done:
        if not any(event.get("event") == "finished" for event in patient.events):
            yield warning("the run is complete, but events.jsonl doesn't say that it finished")
    elif kind == "failed" and "code" in last:
        todo = f"change its recipe or method, which makes a new run; or {patient.train} --again"
        yield problem(f"the run failed: {cause}", todo)
    elif kind == "failed":
        yield problem(f"the run failed: {cause}", f"mend that, then {patient.train}")
    elif kind in ENDINGS and kind != "finished":
        yield warning(f"the run was interrupted by {cause}", patient.train)
    elif not patient.events:
        yield warning("no attempt is on record", patient.train)


def _endless(events: list[dict[str, Any]]) -> int:
    """How many attempts opened without an end before the next one, or at all."""
    kinds = [event.get("event") for event in events if event.get("event") in ("opened", *ENDINGS)]
    return sum(
        k == "opened" and n in (None, "opened")
        for k, n in zip(kinds, [*kinds[1:], None], strict=True)
    )


def _lines(numbers: list[int]) -> str:
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
