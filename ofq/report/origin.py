"""Origin of a number in a table, as text."""

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd

from ofq.config import Cell, Workspace
from ofq.config.files import suggest
from ofq.console import printable
from ofq.errors import UserError
from ofq.report.collect import Records, collect
from ofq.report.compare import by_images, hold_against, images_of
from ofq.report.measures import TOP1, measures
from ofq.report.statistics import images_interval
from ofq.report.tables import verdict_rows


def explain(workspace: Workspace, study: str, cell: str) -> str:
    """Describe the runs behind a cell of a study's table.

    Args:
        workspace: The checkout's config.
        study: The study's name.
        cell: ``BITS/METHOD`` as the study's config has them, such as ``W2A2/statsq+qkr`` or
            ``FP/fp``; ``MODEL/BITS/METHOD`` in a study of several models.

    Returns:
        The result and its verdict, then for each seed: value, run, chain of runs, commit, recipe
        differences, its runs in MLflow, and the command that repeats it.

    Raises:
        UserError: The study has no such cell, or none of its cells has a finished run.
    """
    target = _find(workspace, study, cell)
    records = collect(workspace, study)
    runs = records.runs_of(target)
    missing = records.reasons.get(target.place)
    lines = [f"{target.label}, {target.bits}, {target.model}, study {study}"]
    if missing:
        count = f"{len(target.runs) - len(runs)} of {len(target.runs)} seeds"
        lines.append(f"{count} are missing ({missing}): ofq status {study}")
    mine = {link.id for run in target.runs for link in run.chain()}
    lines += [f"damaged: {fault}" for name, fault in records.damaged.items() if name in mine]
    if not runs.empty:
        lines += [_number(records, runs), *_verdicts(records, target)]
    for run in runs.to_dict("records"):
        lines += ["", *_origin(records, run)]
    if not (workspace.root / "Snakefile").exists():
        lines += ["", "This is no checkout of the suite: to train again, use one, at that commit."]
    return "\n".join(lines)


def _find(workspace: Workspace, study: str, name: str) -> Cell:
    cells = workspace.grid(study).cells
    several = len({cell.model for cell in cells}) > 1
    names = {
        "/".join([*([cell.model] if several else []), cell.bits, cell.method]): cell
        for cell in cells
    }
    if name not in names:
        raise UserError(f"study '{study}' has no cell '{name}' ({suggest(name, list(names))})")
    return names[name]


def _number(records: Records, runs: pd.DataFrame) -> str:
    measure = measures(records.primary)[0]
    summary = measure.over_seeds(runs[measure.key], records.resplit)
    text = f"{measure.heading}: {measure.text(summary.mean)}"
    if summary.n == 1:
        return f"{text} (one seed{_over_images(runs) if by_images(runs) else ''})"
    interval = f", 95 % interval {measure.text(summary.low)} to {measure.text(summary.high)}"
    spread = f" ± {measure.text(summary.std)}, {summary.n} seeds"
    return text + spread + ("" if math.isnan(summary.low) else interval)


def _over_images(runs: pd.DataFrame) -> str:
    low, high = images_interval(runs["top1"].iloc[0], images_of(runs))
    return f"; 95 % interval over its images {TOP1.text(low)} to {TOP1.text(high)}"


def _verdicts(records: Records, cell: Cell) -> list[str]:
    verdicts = hold_against(records)
    if verdicts.empty:
        return []
    mine = records.of(verdicts, model=cell.model, bits=cell.bits, method=cell.method)
    return [
        f"reported: {row['reported']} ({row['known']}); difference {row['difference']} "
        f"{row['95 % interval']}: {row['verdict']}"
        for row in verdict_rows(mine)
    ]


def _origin(records: Records, run: dict[Hashable, Any]) -> list[str]:
    measure = measures(records.primary)[0]
    counted = pd.notna(run["correct"])
    images = f" ({run['correct']:.0f} of {run['images']:.0f} images)" if counted else ""
    facts = {
        "run": run["run"],
        "chain": run["chain"] if " > " in run["chain"] else None,
        "commit": run["commit"],
        "recipe differs": run["recipe_differences"],
        "MLflow": run["mlflow_runs"],
        "again": f"{run['command']}  (where the run's folder isn't there)",
    }
    facts = {name: printable(fact) for name, fact in facts.items() if fact}
    lines = [f"seed {run['seed']}: {measure.text(run[measure.key])}{images}"]
    return lines + [f"  {name + ':':15} {fact}" for name, fact in facts.items()]
