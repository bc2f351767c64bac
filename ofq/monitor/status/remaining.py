"""Time until a study's runs are done, given only if the pace of all remaining runs is known."""

from collections.abc import Mapping

from ofq.config import Run
from ofq.monitor.estimate import Estimator, Sample
from ofq.monitor.kind import kind_of, passes_of
from ofq.monitor.schedule import Task, makespan
from ofq.monitor.span import Range
from ofq.monitor.status.runs import RunStatus

_SLOTS = "slots"  # as many as runs that run now


def time_left(runs: Mapping[str, Run], statuses: Mapping[str, RunStatus]) -> Range | None:
    """Estimate the seconds until all runs are done, if as many as now run at once.

    A running one's steps tell how long it takes; the others take as long as those like them.

    Args:
        runs: A study's runs, parents first.
        statuses: The status of each run.

    Returns:
        The range; None if nothing runs, or if the pace of some runs is unknown.
    """
    at_once = sum(status.state == "running" for status in statuses.values())
    seconds = _seconds(runs, statuses)
    if not at_once or seconds is None:
        return None

    def until_done(times: Mapping[str, float]) -> float:
        tasks = []
        for name, time in times.items():
            needs = tuple(need.id for need in runs[name].needs() if need.id in times)
            running = statuses[name].state == "running"
            tasks.append(Task(name, time, _SLOTS, 1, needs, running))
        return makespan(tasks, {_SLOTS: at_once})

    low = until_done({name: time.low for name, time in seconds.items()})
    high = until_done({name: time.high for name, time in seconds.items()})
    return Range(min(low, high), max(low, high))  # shorter jobs may take longer as a whole


def waiting_for(runs: Mapping[str, Run], statuses: Mapping[str, RunStatus]) -> dict[str, set[str]]:
    """Return, for each failed run, the runs that can't be trained before it."""
    causes: dict[str, set[str]] = {}
    dependents: dict[str, set[str]] = {
        name: set() for name in runs if statuses[name].state == "failed"
    }
    for name, run in runs.items():
        if statuses[name].state == "done":
            continue
        mine = {cause for need in run.needs() for cause in causes.get(need.id, ())}
        for cause in mine:
            dependents[cause].add(name)
        causes[name] = mine | ({name} if name in dependents else set())
    return dependents


def _seconds(runs: Mapping[str, Run], statuses: Mapping[str, RunStatus]) -> dict[str, Range] | None:
    """Return the time of each run that is still to be done; None if one's isn't known."""
    blocked = {name for names in waiting_for(runs, statuses).values() for name in names}
    estimator = Estimator(_samples(runs, statuses))
    seconds = {}
    for name, run in runs.items():
        status = statuses[name]
        if status.state in ("done", "failed") or name in blocked:
            continue
        if status.left is not None:
            seconds[name] = Range(status.left, status.left)
            continue
        estimate = estimator.estimate(run)
        if not estimate.measured:
            return None
        seconds[name] = estimate.seconds
    return seconds


def _samples(runs: Mapping[str, Run], statuses: Mapping[str, RunStatus]) -> list[Sample]:
    samples = []
    for name, run in runs.items():
        status = statuses[name]
        took = status.seconds if status.pace is None else status.pace * status.total
        if took is not None:
            epoch = took / passes_of(run.config.payload())
            samples.append(Sample(kind_of(run), "", "run", Range(epoch, epoch)))
    return samples
