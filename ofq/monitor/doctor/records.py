"""Checks of the records of attempts: provenance and events."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from ofq.errors import UserError, some
from ofq.monitor.doctor.examined import ExaminedRun
from ofq.monitor.doctor.finding import Finding, ok, problem, warning
from ofq.runs.attempt import ENDINGS
from ofq.runs.folder import EVENTS, PROVENANCE
from ofq.runs.record import Damaged

_UNREAD = "no number depends on it"


def check_provenance(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that each attempt's code, machine and command are on record."""
    opened = [event for event in examined.events if event.get("event") == "opened"]
    path = examined.path / PROVENANCE
    attempts = (examined.read(PROVENANCE) or {}).get("attempts")
    fault = _fault(examined)
    if fault or not attempts:
        if examined.done:
            todo = examined.put_back(PROVENANCE)
        else:
            todo = (
                f"{examined.remove([path])} && {examined.train}"
                if path.exists()
                else examined.train
            )
        if opened or path.exists() or examined.done:
            reason = f": {fault}" if fault else ""
            yield problem(f"provenance.json is missing or can't be read{reason}", todo)
    elif examined.running or len(attempts) in (len(opened), len(opened) + 1):
        yield ok(f"provenance.json has each attempt ({len(attempts)})")
    else:
        text = f"provenance of {len(attempts)} attempts, but events of {len(opened)}"
        yield warning(text, f"nothing: {_UNREAD}")


def _fault(examined: ExaminedRun) -> str | None:
    """Return the fault of ``provenance.json``; None if it is sound or missing."""
    try:
        examined.folder.provenance()
    except Damaged as damage:
        return damage.fault if damage.file == PROVENANCE else None
    except UserError:  # there is none
        return None
    return None


def check_events(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that each attempt has a beginning and an end, and the last end fits the folder."""
    torn = examined.folder.torn(EVENTS)
    if torn:
        text = f"events.jsonl: {_lines(torn)} torn by a crash; readers leave them out"
        yield warning(text, f"nothing: {_UNREAD}")
    if examined.running:
        return
    endless = _endless(examined.events, dead=examined.held is not None)
    if endless:
        text = f"events.jsonl: attempts whose end isn't on record: {endless}"
        yield warning(text, f"nothing: {_UNREAD}")
    elif examined.events:
        yield ok(f"events.jsonl: {len(examined.events)} events, no attempt without its end")
    yield from _outcome(examined)


def _outcome(examined: ExaminedRun) -> Iterator[Finding]:
    """Report the outcome of the last attempt."""
    last: dict[str, Any] = examined.events[-1] if examined.events else {}
    kind, cause = last.get("event"), str(last.get("cause")).partition("\n")[0]
    if examined.done:
        if not any(event.get("event") == "finished" for event in examined.events):
            text = "the run is complete, but events.jsonl doesn't say that it finished"
            yield warning(text, f"put it back from a backup, if there is one; {_UNREAD}")
    elif kind == "failed" and "code" in last:
        todo = f"{examined.train} --again  once more; or change its recipe or method"
        yield problem(f"the run failed: {cause}", todo)
    elif kind == "failed":
        yield problem(f"the run failed: {cause}", f"{examined.train}  once that is mended")
    elif kind in ENDINGS and kind != "finished":
        yield warning(f"the run was interrupted: {cause}", examined.train)
    elif not examined.events:
        yield warning("no attempt is on record", examined.train)


def _endless(events: list[dict[str, Any]], *, dead: bool) -> int:
    """Return the number of attempts without an end, except a dead lock's: the next notes that."""
    kinds = [event.get("event") for event in events if event.get("event") in ("opened", *ENDINGS)]
    pairs = pairwise([*kinds, "lost" if dead else None])
    return sum(kind == "opened" and after not in ENDINGS for kind, after in pairs)


def _lines(numbers: list[int]) -> str:
    return f"line{'s' if len(numbers) > 1 else ''} {some([*map(str, numbers)])}"
