"""The files: final ones, checkpoints, and what shouldn't be there."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from ofq.attempt import CHECKPOINT, SAVE_REQUEST
from ofq.doctor.finding import Finding, ok, problem, warning
from ofq.doctor.patient import Patient
from ofq.errors import some
from ofq.manifest import OtherFormat, examine, manifests
from ofq.tracking.folder import RESULT, SEALED, WEIGHTS, sha256

_DECLARED = (RESULT, WEIGHTS, "metrics.parquet")  # what the workflow asks of a run


def check_access(patient: Patient) -> Iterator[Finding]:
    """All of it may be read; else nothing else can be said."""
    paths = [patient.path, *patient.path.rglob("*")]
    denied = [path for path in paths if os.path.lexists(path) and not _may_be_read(path)]
    if denied:
        names = some([str(path.relative_to(patient.path)) for path in denied])
        todo = f"chmod -R u+rX {shlex.quote(str(patient.path))}  by its owner, then look again"
        yield problem(f"no permission to read {names}", todo)


def _may_be_read(path: Path) -> bool:
    return os.access(path, os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK)


def check_final_files(patient: Patient) -> Iterator[Finding]:
    """The final files are those that were written, in their place and sealed."""
    if patient.running:
        return
    published, sealed = patient.read(RESULT), patient.read(f"{SEALED}/{RESULT}")
    if (patient.path / RESULT).exists() and published is None and sealed is None:
        yield problem(f"{RESULT} can't be read", patient.anew)
        return
    result = sealed or published
    if result is None:
        return  # the run hasn't ended
    if "sha256" not in result:
        yield from _without_hashes(patient)
        return
    hashes = result["sha256"]
    places = {name: patient.path / name for name in hashes}
    bad = [n for n, path in places.items() if not path.exists() or sha256(path) != hashes[n]]
    if sealed is None:
        yield from _unsealed(patient, bad, [*hashes, RESULT])
        return
    bad += [RESULT] if published != sealed else []
    broken = patient.folder.damaged()
    yield from _sealed(patient, bad, broken)
    if not bad and not broken:
        yield ok(f"{len(hashes) + 1} final files are whole, and sealed")


def check_checkpoints(patient: Patient) -> Iterator[Finding]:
    """What an unfinished run would go on from."""
    whole = False
    for manifest in manifests(patient.path / CHECKPOINT):
        try:
            wrong = examine(manifest)
        except OtherFormat as other:
            whole = True
            yield problem(f"checkpoint {manifest.stem} is another version's", str(other))
            continue
        if wrong is None:
            whole = True
            yield ok(f"checkpoint {manifest.stem} is whole")
        elif not patient.running:  # a trainer removes old ones, under our eyes
            yield warning(f"checkpoint {manifest.stem} {wrong}; it is passed over")
    sealed = patient.read(f"{SEALED}/{RESULT}") is not None
    if _has_trained(patient) and not (whole or sealed or patient.done or patient.running):
        yield problem("no whole checkpoint: the run begins again at its first step", patient.train)


def check_leftovers(patient: Patient) -> Iterator[Finding]:
    """Nothing is left of writers that were killed."""
    if patient.running:
        return
    places = (patient.path, patient.path / CHECKPOINT, patient.path / SEALED)
    left = [
        path for place in places for end in ("tmp", "probe") for path in place.glob(f".*.{end}")
    ]
    states = (patient.path / CHECKPOINT).glob("step-*.pt")
    left += [path for path in states if not path.with_suffix(".json").exists()]
    stale = [SAVE_REQUEST, *(["progress.json"] if patient.done else [])]
    left += [patient.path / name for name in stale if (patient.path / name).exists()]
    if left:
        names = some([path.name for path in left])
        yield warning(f"left by a writer that was killed: {names}", patient.remove(left))


def _has_trained(patient: Patient) -> bool:
    """Whether there are steps to be lost; an evaluation has none."""
    config = (patient.read("run.json") or {}).get("config") or {}
    return (patient.path / "metrics.jsonl").exists() and config.get("training") is not None


def _without_hashes(patient: Patient) -> Iterator[Finding]:
    missing = [name for name in _DECLARED if not (patient.path / name).exists()]
    if missing:
        yield problem(f"missing: {some(missing)}", patient.anew)
    else:
        yield warning("the final files are from before hashes were kept; they can't be checked")


def _unsealed(patient: Patient, bad: list[str], names: list[str]) -> Iterator[Finding]:
    if bad:
        yield problem(f"missing or damaged, and not sealed: {some(bad)}", patient.anew)
        return
    sealed = shlex.quote(str(patient.path / SEALED))
    files = shlex.join(str(patient.path / name) for name in names)
    todo = f"mkdir -p {sealed} && ln -f {files} {sealed}"
    yield warning("the final files are whole, but not sealed: deleted ones can't be put back", todo)


def _sealed(patient: Patient, bad: list[str], broken: list[str]) -> Iterator[Finding]:
    """Final files that are bad in their place, where they lie sealed, or in both."""
    lost = [name for name in bad if name in broken]
    if lost:
        yield problem(f"damaged, in its place and sealed: {some(lost)}", patient.anew)
    for name in broken:
        if name not in lost:
            good, copy = (shlex.quote(str(patient.path / n)) for n in (name, f"{SEALED}/{name}"))
            text = f"{SEALED}/{name} is missing or damaged; {name} itself is whole"
            yield warning(text, f"ln -f {good} {copy}")
    if bad and not lost:
        # a complete run is left alone, so it has to be incomplete for its files to be put back
        result = patient.path / RESULT
        back = f"{patient.remove([result])} && {patient.train}" if patient.done else patient.train
        yield problem(f"missing or damaged, but sealed: {some(bad)}", back)
