"""Whose folder it is, and who writes it."""

from collections.abc import Iterator

from ofq.doctor.finding import Finding, ok, problem, warning
from ofq.doctor.patient import Patient
from ofq.errors import some
from ofq.tracking.folder import agrees
from ofq.tracking.lock import SILENCE


def check_identity(patient: Patient) -> Iterator[Finding]:
    """``run.json`` is this run's, with the config that its study gives it."""
    found = patient.read("run.json")
    if found is None or not isinstance(found.get("config"), dict):
        # while the run isn't complete, the next attempt writes what is missing
        missing = not (patient.path / "run.json").exists() and not patient.done
        todo = patient.train if missing else patient.put_back("run.json")
        yield problem("run.json is missing or can't be read", todo)
        return
    if found.get("id") != patient.id:
        todo = f"move it to {patient.runs / str(found.get('id'))}"
        yield problem(f"the folder is {found.get('id')}'s, by its run.json", todo)
    elif not patient.in_place:
        place = patient.runs / patient.id
        yield warning(f"the workflow looks for it in {place}", f"move it to {place}")
    if patient.run is None:
        yield warning(
            "no study under config/ has this run any more: its config is only in run.json",
            "nothing, unless a study is to have it: `git log -- config` tells of earlier ones",
        )
    elif agrees(found["config"], patient.run.config.payload()):
        yield ok(f"run.json agrees with {_studies(patient)}")
    else:
        wanted = patient.run.config.payload()
        keys = [k for k, v in found["config"].items() if not agrees(v, wanted.get(k))]
        yield problem(f"run.json differs from {_studies(patient)} in {some(keys)}", patient.anew)


def check_lock(patient: Patient) -> Iterator[Finding]:
    """Nobody writes the folder, or somebody who is alive does."""
    held = patient.held
    if held is None:
        yield ok("nobody writes the folder")
    elif held.owner is None:
        lock = patient.path / f"lock-{held.number}.json"
        yield warning(f"{lock.name} names no process", patient.remove([lock]))
    elif patient.done and not held.alive():
        locks = sorted(patient.path.glob("lock-*"))
        yield warning(f"{held} has ended, and left its lock", patient.remove(locks))
    elif not held.alive():
        quiet = f"without a sign of life for {held.quiet():.0f} s"
        yield warning(f"{held} holds the lock, {quiet}: it has died", patient.train)
    elif held.quiet() < -SILENCE:
        ahead = f"its last sign of life is {-held.quiet():.0f} s in the future"
        yield warning(f"{held} holds the lock; {ahead}: clocks differ", patient.train)
    else:
        ago = f"its last sign of life was {max(0.0, held.quiet()):.0f} s ago"
        yield ok(f"{held} writes the folder; {ago}")


def _studies(patient: Patient) -> str:
    names = patient.studies
    return f"{'study' if len(names) == 1 else 'studies'} {some(names)}"
