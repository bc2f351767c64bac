"""A study's cells summarized over seeds, and its methods compared pair by pair."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

import pandas as pd

from ofq.report.collect import Records
from ofq.report.measures import SIZE, Measure, measures
from ofq.report.statistics import (
    Summary,
    detectable,
    holm,
    mcnemar,
    summarize,
    verdict,
)
from ofq.report.verdicts import Distance, distance, judge
from ofq.study import Cell, Study
from ofq.study.reference import Value


def summarize_cells(records: Records) -> pd.DataFrame:
    """One row per cell.

    Returns:
        The cell's names; ``n`` finished seeds; ``missing``, why others aren't; for each measure
        ``_mean``, ``_std``, ``_low``, ``_high`` (95 % t interval); ``best``: whether the primary
        number is the best at these bits and differs from every other method's by an interval that
        excludes 0; ``megabytes`` of the packed model, of full precision for the baseline, if runs
        were exported.
    """
    rows = []
    for cell in records.cells:
        names = {"model": cell.model, "bits": cell.bits, "method": cell.method}
        runs = records.runs_of(cell)
        row = {"dataset": cell.dataset, **names, "label": cell.label, "n": len(runs)}
        row["missing"] = records.reasons.get(cell.place)
        for measure in measures(records.primary):
            values = runs[measure.key].dropna()
            for key in ("mean", "std", "low", "high"):
                row[f"{measure.key}_{key}"] = (
                    getattr(summarize(values), key) if len(values) else float("nan")
                )
        rows.append({**row, "best": _is_best(records, **names), **_size(records, cell)})
    return pd.DataFrame(rows)


def _size(records: Records, cell: Cell) -> dict[str, float]:
    """Megabytes of a cell's model; all seeds' models are equally large."""
    if "packed_bytes" not in records.runs:
        return {}
    if cell.method == "fp":
        sizes = records.of(records.runs, model=cell.model)["full_precision_bytes"]
    else:
        sizes = records.runs_of(cell)["packed_bytes"]
    return {SIZE.key: sizes.astype(float).max() / 1e6}


def compare(records: Records) -> pd.DataFrame:
    """The study's comparisons of two methods (:func:`pairs`), on the same seeds.

    Returns:
        One row per measure, model, bits and pair: ``mean`` of method − against, ``std``,
        ``low``, ``high``, ``p``, ``p_holm`` (the family is all pairs of one measure),
        ``verdict``, and ``detectable``, the smallest difference that as many seeds with this
        spread would show with 80 % power; ``gained`` and ``lost``, the images of all seeds that
        only the method or only the other is right about, with McNemar's ``p_mcnemar``: of accuracy
        whatever the measure, and empty where runs don't keep what they are right about.
    """
    frames = [_compare_one(records, measure) for measure in measures(records.primary)]
    found = pd.concat(frames, ignore_index=True)
    names = ["model", "bits", "method", "against"]
    images = [
        (*pair, *_disagreement(records, *pair))
        for pair in found[names].drop_duplicates().itertuples(index=False, name=None)
    ]
    columns = [*names, "gained", "lost", "p_mcnemar"]
    return found.merge(pd.DataFrame(images, columns=columns), on=names, how="left")


def _compare_one(records: Records, measure: Measure) -> pd.DataFrame:
    rows, summaries = [], []
    for model in records.study.models:
        for bits in records.study.bits:
            for method, against in pairs(records.study):
                summary = difference(records, measure, model, bits, method, against)
                if summary is not None:
                    rows.append((measure.key, model, bits, method, against))
                    summaries.append(summary)
    frame = pd.DataFrame(rows, columns=["measure", "model", "bits", "method", "against"])
    facts = tested(summaries).assign(detectable=[detectable(s.std, s.n) for s in summaries])
    return frame.join(facts)


def tested(summaries: Sequence[Summary]) -> pd.DataFrame:
    """Differences of one family, each tested against 0.

    Returns:
        One row per difference: its summary, ``p``, ``p_holm`` and ``verdict``.
    """
    facts = pd.DataFrame([asdict(s) for s in summaries], columns=list(Summary.__annotations__))
    adjusted = holm([s.p for s in summaries])
    return facts.assign(
        p=[s.p for s in summaries],
        p_holm=adjusted,
        verdict=[verdict(s, p) for s, p in zip(summaries, adjusted, strict=True)],
    )


def hold_against(records: Records) -> pd.DataFrame:
    """The study's numbers beside those that were reported (:mod:`ofq.report.verdicts`).

    Returns:
        One row per reported number of one of the study's cells: ``n`` seeds, ``mean``,
        ``reported`` with ``status``, ``source`` and ``reference``, ``difference``, ``low``,
        ``high``, ``p``, ``p_holm`` (the family is all rows), ``detectable``, ``by_images`` and
        ``verdict``; ``missing`` says why there is no number of our own.
    """
    reported = _reported(records)
    rows, found = [], []
    for cell in records.cells:
        if cell.place not in reported:
            continue
        title, value = reported[cell.place]
        runs = records.runs_of(cell)
        found.append(_distance(runs, value))
        rows.append(
            {
                "model": cell.model, "bits": cell.bits, "method": cell.method, "label": cell.label,
                "mean": runs["top1"].mean(), "reported": value.value, "status": value.status,
                "source": value.source, "reference": title,
                "missing": records.reasons.get(cell.place),
            }
        )  # fmt: skip
    adjusted = holm([d.p for d in found])
    verdicts = [judge(d, p) if d.n else "not run" for d, p in zip(found, adjusted, strict=True)]
    facts = pd.DataFrame([asdict(d) for d in found], columns=list(Distance.__annotations__))
    return pd.DataFrame(rows).join(facts).assign(p_holm=adjusted, verdict=verdicts)


def _distance(runs: pd.DataFrame, value: Value) -> Distance:
    if runs.empty:
        return Distance(0, math.nan)
    return distance(runs["top1"], value.value, value.runs, int(runs["images"].iloc[0]))


def _reported(records: Records) -> dict[tuple[str, str, str], tuple[str, Value]]:
    """Each cell's reported number, with the title of the first reference that has it."""
    found: dict[tuple[str, str, str], tuple[str, Value]] = {}
    for reference in records.references:
        for value in reference.values:
            found.setdefault(value.cell, (reference.title, value))
    return found


def pairs(study: Study) -> list[tuple[str, str]]:
    """(method, against) of every comparison.

    The study's contrasts, if it has any; else each technique added, then each method against the
    first.
    """
    if study.contrasts:
        return list(dict.fromkeys((c.method, c.against) for c in study.contrasts))
    methods = study.methods
    added = [(after, before) for before, after in pairwise(methods)]
    return [*added, *((method, methods[0]) for method in methods[2:])]


def difference(
    records: Records, measure: Measure, model: str, bits: str, method: str, against: str
) -> Summary | None:
    """Paired differences of two methods, summarized; None if no seed has both numbers."""
    runs = records.of(records.runs, model=model, bits=bits)
    one, other = (
        records.of(runs, method=name).set_index("seed")[measure.key] for name in (method, against)
    )
    values = (one - other).dropna()
    return summarize(values) if len(values) else None


def _disagreement(
    records: Records, model: str, bits: str, method: str, against: str
) -> tuple[float, float, float]:
    """McNemar's test of two methods over the seeds of which both kept what they are right about.

    Returns:
        Images gained and lost, and p; NaN where there is no such seed.
    """
    runs = records.of(records.runs, model=model, bits=bits)
    one, other = (
        {
            seed: records.correct.get(run)
            for seed, run in zip(mine["seed"], mine["run"], strict=True)
        }
        for mine in (records.of(runs, method=name) for name in (method, against))
    )
    pairs = [(mine, other.get(seed)) for seed, mine in one.items()]
    kept = [(a, b) for a, b in pairs if a is not None and b is not None and len(a) == len(b)]
    if not kept:
        return math.nan, math.nan, math.nan
    found = mcnemar(kept)
    return found.gained, found.lost, found.p


def _is_best(records: Records, model: str, bits: str, method: str) -> bool:
    measure = measures(records.primary)[0]
    others = [name for name in records.study.methods if name != method]
    if method == "fp" or not others:
        return False
    gaps = [difference(records, measure, model, bits, method, other) for other in others]
    return all(
        gap is not None and gap.excludes_zero and gap.mean * measure.best > 0 for gap in gaps
    )
