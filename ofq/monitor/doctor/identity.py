"""Checks of the folder's run and of its writer."""

from collections.abc import Iterator

from ofq.errors import some
from ofq.monitor.doctor.examined import ExaminedRun
from ofq.monitor.doctor.finding import Finding, ok, problem, warning
from ofq.runs.folder import agrees
from ofq.runs.lock import SILENCE


def check_identity(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that ``run.json`` is this run's, with the config that its study gives it."""
    description = examined.read("run.json")
    if description is None or not isinstance(description.get("config"), dict):
        # while the run isn't complete, the next attempt writes what is missing
        missing = not (examined.path / "run.json").exists() and not examined.done
        todo = examined.train if missing else examined.put_back("run.json")
        yield problem("run.json is missing or can't be read", todo)
        return
    if description.get("id") != examined.id:
        todo = f"move it to {examined.runs / str(description.get('id'))}"
        yield problem(f"the folder is {description.get('id')}'s, by its run.json", todo)
    elif not examined.in_place:
        place = examined.runs / examined.id
        yield warning(f"the workflow looks for it in {place}", f"move it to {place}")
    if examined.run is None:
        yield warning(
            "no study under config/ has this run any more: its config is only in run.json",
            "nothing, unless a study should have it: `git log -- config` shows earlier ones",
        )
    elif agrees(description["config"], examined.run.config.payload()):
        yield ok(f"run.json agrees with {_studies(examined)}")
    else:
        wanted = examined.run.config.payload()
        keys = [k for k, v in description["config"].items() if not agrees(v, wanted.get(k))]
        yield problem(f"run.json differs from {_studies(examined)} in {some(keys)}", examined.anew)


def check_lock(examined: ExaminedRun) -> Iterator[Finding]:
    """Check that nobody holds the folder's lock, or a live process does."""
    held = examined.held
    if held is None:
        yield ok("nobody writes the folder")
    elif held.owner is None:
        lock = examined.path / f"lock-{held.number}.json"
        yield warning(f"{lock.name} names no process", examined.remove([lock]))
    elif examined.done and not held.alive():
        locks = sorted(examined.path.glob("lock-*"))
        yield warning(f"{held} has ended, and left its lock", examined.remove(locks))
    elif not held.alive():
        quiet = f"without a sign of life for {held.quiet():.0f} s"
        yield warning(f"{held} holds the lock, {quiet}: it has died", examined.train)
    elif held.quiet() < -SILENCE:
        ahead = f"its last sign of life is {-held.quiet():.0f} s in the future"
        yield warning(f"{held} holds the lock; {ahead}: clocks differ", examined.train)
    else:
        ago = f"its last sign of life was {max(0.0, held.quiet()):.0f} s ago"
        yield ok(f"{held} writes the folder; {ago}")


def _studies(examined: ExaminedRun) -> str:
    names = examined.studies
    return f"{'study' if len(names) == 1 else 'studies'} {some(names)}"
