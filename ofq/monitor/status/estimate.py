"""Estimate of a study's remaining time, given only if the pace of all remaining runs is known."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ofq.config import Run
from ofq.config.run import training_of
from ofq.monitor.status.runs import RunStatus

_Kind = tuple[str, str, str]


@dataclass(frozen=True)
class Estimate:
    """Remaining time, if as many runs as now run at once."""

    seconds: float
    at_once: int


def time_left(runs: Mapping[str, Run], statuses: Mapping[str, RunStatus]) -> Estimate | None:
    """Estimate the time of the remaining runs from that of others like them.

    Args:
        runs: A study's runs, parents first.
        statuses: The status of each run.

    Returns:
        The estimate; None if nothing runs, or if the pace of some runs is unknown.
    """
    at_once = sum(status.state == "running" for status in statuses.values())
    blocked = {name for names in waiting_for(runs, statuses).values() for name in names}
    seconds_per_epoch = _paces(runs, statuses)
    ends: dict[str, float] = {}
    work = 0.0
    for name, run in runs.items():
        status = statuses[name]
        if status.state in ("done", "failed") or name in blocked:
            continue
        seconds = status.left
        if seconds is None:
            if _kind(run) not in seconds_per_epoch:
                return None
            seconds = seconds_per_epoch[_kind(run)] * _epochs(run)
        work += seconds
        ends[name] = seconds + max((ends.get(need.id, 0.0) for need in run.needs()), default=0.0)
    if not at_once:
        return None
    return Estimate(max(work / at_once, *ends.values()), at_once)


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


def _paces(runs: Mapping[str, Run], statuses: Mapping[str, RunStatus]) -> dict[_Kind, float]:
    """Return the seconds per epoch of each kind of run whose times are known."""
    seconds: defaultdict[_Kind, float] = defaultdict(float)
    epochs: Counter[_Kind] = Counter()
    for name, run in runs.items():
        status = statuses[name]
        took = status.seconds if status.pace is None else status.pace * status.total
        if took is not None:
            seconds[_kind(run)] += took
            epochs[_kind(run)] += _epochs(run)
    return {kind: seconds[kind] / epochs[kind] for kind in seconds}


def _kind(run: Run) -> _Kind:
    return run.config.dataset, run.config.model, run.config.stage


def _epochs(run: Run) -> int:
    training = training_of(run.config)
    return training.epochs if training else 1
