"""Time limits of jobs, from the estimated times of runs."""

import math
from collections.abc import Iterable, Iterator

from ofq.config import Workspace
from ofq.config.runtimes import Minutes, update
from ofq.errors import UserError
from ofq.monitor.plan.plan import Planner

_ROOM = 1.25  # safety factor on the longest estimated time
_AROUND = 2  # minutes for what comes before and after training in a job
_MINUTE = 60


def needed(planner: Planner) -> Minutes:
    """Return the minutes that a run of each measured model and stage needs in one job."""
    minutes: Minutes = {}
    for run in planner.runs.values():
        estimate = planner.estimate(run)
        if estimate.measured:
            time = math.ceil(_ROOM * estimate.seconds.high / _MINUTE) + _AROUND
            stages = minutes.setdefault(run.config.model, {})
            stages[run.config.stage] = max(time, stages.get(run.config.stage, 0))
    return minutes


def jobs(minutes: int, longest: int | None) -> int:
    """Return how many jobs a run needs, if each is limited to some minutes.

    >>> jobs(60, None), jobs(60, 60), jobs(3000, 1440)
    (1, 1, 3)
    """
    if longest is None or minutes <= longest:
        return 1
    return math.ceil((minutes - _AROUND) / (longest - _AROUND))


def write(workspace: Workspace, planner: Planner, longest: int | None) -> Iterable[str]:
    """Write a study's time limits to ``config/runtimes.yaml``.

    Args:
        workspace: The checkout whose config is written.
        planner: The study's planner.
        longest: The most minutes that a job may request; None for any number.

    Returns:
        Lines that report what was written.

    Raises:
        UserError: Nothing was measured.
    """
    minutes = needed(planner)
    if not minutes:
        raise UserError(f"--write-runtime: nothing of {planner.study} was measured; add --measure")
    requests: Minutes = {
        model: {stage: min(time, longest or time) for stage, time in stages.items()}
        for model, stages in minutes.items()
    }
    recipe = workspace.study(planner.study).recipe
    update(workspace.runtimes_path, workspace.recipe_names, recipe, requests)
    return [f"wrote {workspace.runtimes_path}", *_report(minutes, longest)]


def _report(minutes: Minutes, longest: int | None) -> Iterator[str]:
    most = 1
    for model, stages in minutes.items():
        for stage, time in stages.items():
            count = jobs(time, longest)
            most = max(most, count)
            parts = f", in {count} jobs of {longest} min" if count > 1 else ""
            yield f"{model} {stage}: {time} min{parts}"
    if most > 1:
        yield f"give Snakemake --retries {most - 1} or more: each job resumes where one ended"
