"""Summaries of a study's cells over seeds, and pairwise comparisons of its methods."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise, product

import pandas as pd

from ofq.config import Cell, Study
from ofq.config.reference import Value
from ofq.report.collect import Records
from ofq.report.measures import SIZE, TOP1, Measure, measures
from ofq.report.statistics import (
    ALPHA,
    Summary,
    detectable,
    holm,
    images_interval,
    mcnemar,
    summarize,
    verdict,
)
from ofq.report.verdicts import Distance, distance, exactly, judge


def summarize_cells(records: Records) -> pd.DataFrame:
    """Summarize each cell over its seeds.

    Returns:
        One row per cell: the cell's names; ``n`` finished seeds; ``missing``, the reason why others
        aren't finished; for each measure ``_mean``, ``_std``, ``_low``, ``_high`` (95 % t interval
        over seeds; for one seed's accuracy Wilson's over its images, then ``by_images`` is true);
        ``best``: whether the primary measure is shown to be the best at these bits, against every
        other method; ``megabytes`` of the packed model, of full precision for the baseline, if runs
        were exported; ``runs``, ``seeds`` and ``commits`` behind the result, separated by spaces.
    """
    best, rows = _best(records), []
    for cell in records.cells:
        names = {"model": cell.model, "bits": cell.bits, "method": cell.method}
        runs = records.runs_of(cell)
        row = {"dataset": cell.dataset, **names, "label": cell.label, "n": len(runs)}
        row["missing"] = records.reasons.get(cell.place)
        for measure in measures(records.primary):
            row |= _summary(runs, measure)
        row |= {"by_images": by_images(runs), "best": cell.place in best}
        rows.append(row | _size(records, cell) | _origin(runs))
    return pd.DataFrame(rows)


def _origin(runs: pd.DataFrame) -> dict[str, str]:
    """Return the runs, seeds and commits of a cell; the table ``runs`` has the rest, by run."""
    commits = [commit for of_run in runs["commit"] for commit in of_run.split()]
    return {
        "runs": " ".join(runs["run"]),
        "seeds": " ".join(runs["seed"].astype(str)),
        "commits": " ".join(dict.fromkeys(commits)),
    }


def _summary(runs: pd.DataFrame, measure: Measure) -> dict[str, float]:
    values = runs[measure.key].dropna()
    fields = dict.fromkeys(("mean", "std", "low", "high"), math.nan)
    if len(values):
        summary = measure.over_seeds(values)
        fields = {key: getattr(summary, key) for key in fields}
    if measure is TOP1 and by_images(runs):
        fields["low"], fields["high"] = images_interval(values.iloc[0], images_of(runs))
    return {f"{measure.key}_{key}": value for key, value in fields.items()}


def by_images(runs: pd.DataFrame) -> bool:
    """Return whether a cell's interval is over images: one seed with a known number of images."""
    return len(runs) == 1 and bool(runs["top1"].notna().all()) and images_of(runs) > 0


def images_of(runs: pd.DataFrame) -> int:
    """Return the number of evaluation images of a cell's runs; 0 if it isn't recorded."""
    images = runs["images"].iloc[0]
    return 0 if pd.isna(images) else int(images)


def _size(records: Records, cell: Cell) -> dict[str, float]:
    """Return the megabytes of a cell's model, which are equal for all seeds."""
    if "packed_bytes" not in records.runs:
        return {}
    if cell.method == "fp":
        sizes = records.of(records.runs, model=cell.model)["full_precision_bytes"]
    else:
        sizes = records.runs_of(cell)["packed_bytes"]
    return {SIZE.key: sizes.astype(float).max() / 1e6}


def compare(records: Records) -> pd.DataFrame:
    """Compare the study's pairs of methods (:func:`pairs`) on the same seeds.

    Returns:
        One row per measure, model, bits and pair: ``mean`` of method − against, ``std``,
        ``low``, ``high``, ``p``, ``p_holm`` (the family is all pairs of one measure),
        ``verdict``, and ``detectable``, the smallest difference that as many seeds with this
        standard deviation would show with 80 % power at the strictest step of the correction.
        Further, for accuracy whatever the measure, ``gained`` and ``lost``, the images that only
        the method or only the other classifies correctly, with McNemar's ``p_mcnemar`` and
        ``p_mcnemar_holm`` (the family is all pairs): for the lowest seed that has both, since other
        seeds often have the same images; empty where correct images aren't recorded.
    """
    frames = [_compare_one(records, measure) for measure in measures(records.primary)]
    comparisons = pd.concat(frames, ignore_index=True)
    names = ["model", "bits", "method", "against"]
    images = [
        (*pair, *_disagreement(records, *pair))
        for pair in comparisons[names].drop_duplicates().itertuples(index=False, name=None)
    ]
    marks = pd.DataFrame(images, columns=[*names, "gained", "lost", "p_mcnemar"])
    marks = marks.assign(p_mcnemar_holm=holm(marks["p_mcnemar"].tolist()))
    return comparisons.merge(marks, on=names, how="left")


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
    facts = tested(summaries)
    strictest = ALPHA / max(1, int(facts["p"].notna().sum()))
    return frame.join(
        facts.assign(detectable=[detectable(s.std, s.n, alpha=strictest) for s in summaries])
    )


def tested(summaries: Sequence[Summary]) -> pd.DataFrame:
    """Test each difference of one family against 0.

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


_REPORTED = [
    "model", "bits", "method", "label", "mean", "reported", "status", "source", "reference",
    "missing", "runs", "seeds", "commits",
]  # fmt: skip


def hold_against(records: Records) -> pd.DataFrame:
    """Compare the study's results with reported ones (:mod:`ofq.report.verdicts`).

    Returns:
        One row per reported result of one of the study's cells: ``n`` seeds, ``mean``,
        ``reported`` with ``status``, ``source`` and ``reference``, ``difference``, ``low``,
        ``high``, ``p``, ``p_holm`` (the family is all trained rows), ``detectable``,
        ``by_images``, ``verdict``, and the origin of our result as in :func:`summarize_cells`;
        ``missing`` is the reason why there is none.
    """
    reported = _reported(records)
    cells = [cell for cell in records.cells if cell.place in reported]
    runs_by_cell = [records.runs_of(cell) for cell in cells]
    family = sum(not runs.empty and not _untrained(runs) for runs in runs_by_cell)
    rows, distances = [], []
    for cell, runs in zip(cells, runs_by_cell, strict=True):
        title, value = reported[cell.place]
        missing = records.reasons.get(cell.place)
        distances.append(_distance(runs, value, family, whole=missing is None))
        rows.append(
            {
                "model": cell.model, "bits": cell.bits, "method": cell.method, "label": cell.label,
                "mean": runs["top1"].mean(), "reported": value.value, "status": value.status,
                "source": value.source, "reference": title,
                "missing": missing, **_origin(runs),
            }
        )  # fmt: skip
    adjusted = holm([d.p for d in distances])
    verdicts = [
        judge(d, p) if d.n else _without_number(row["missing"])
        for d, p, row in zip(distances, adjusted, rows, strict=True)
    ]
    facts = pd.DataFrame([asdict(d) for d in distances], columns=list(Distance.__annotations__))
    return (
        pd.DataFrame(rows, columns=_REPORTED).join(facts).assign(p_holm=adjusted, verdict=verdicts)
    )


def _without_number(missing: object) -> str:
    """Return the verdict on a cell without a result, given the reason."""
    return "damaged" if str(missing).startswith("damaged") else "not run"


def _distance(runs: pd.DataFrame, value: Value, family: int, whole: bool) -> Distance:
    """Return a cell's distance; no interval over images is given while seeds are missing."""
    if runs.empty:
        return Distance(0, math.nan)
    if _untrained(runs):
        return exactly(runs["top1"].mean(), value.value)
    images = images_of(runs) if whole else 0
    return distance(runs["top1"], value.value, value.runs, images, family)


def _untrained(runs: pd.DataFrame) -> bool:
    """Return whether a cell's runs evaluate given weights."""
    return bool((runs["chain"] == runs["run"]).all() and (runs["steps"] == 0).all())


def _reported(records: Records) -> dict[tuple[str, str, str], tuple[str, Value]]:
    """Return each cell's reported result, with the title of the first reference that has it."""
    reported: dict[tuple[str, str, str], tuple[str, Value]] = {}
    for reference in records.references:
        for value in reference.values:
            reported.setdefault(value.cell, (reference.title, value))
    return reported


def pairs(study: Study) -> list[tuple[str, str]]:
    """Return (method, against) of every comparison.

    These are the study's contrasts, if it has any. If it has factors, each of them added to each
    combination of the others, then all of them against none; else each method against the one
    before it, then each against the first.
    """
    methods = study.methods
    if study.contrasts:
        return list(dict.fromkeys((c.method, c.against) for c in study.contrasts))
    if study.factors:
        return _factor_by_factor(study)
    added = [(after, before) for before, after in pairwise(methods)]
    return [*added, *((method, methods[0]) for method in methods[2:])]


def _factor_by_factor(study: Study) -> list[tuple[str, str]]:
    by_factors = {study.factors_of(method): method for method in study.methods}
    added = [
        (method, by_factors[having - {factor}])
        for factor in study.factors
        for having, method in by_factors.items()
        if factor in having
    ]
    everything, nothing = by_factors[frozenset(study.factors)], by_factors[frozenset()]
    return list(dict.fromkeys([*added, (everything, nothing)]))


def difference(
    records: Records, measure: Measure, model: str, bits: str, method: str, against: str
) -> Summary | None:
    """Summarize paired differences of two methods; None if no seed has both results."""
    runs = records.of(records.runs, model=model, bits=bits)
    one, other = (
        records.of(runs, method=name).set_index("seed")[measure.key] for name in (method, against)
    )
    values = (one - other).dropna()
    return summarize(values) if len(values) else None


def _disagreement(
    records: Records, model: str, bits: str, method: str, against: str
) -> tuple[float, float, float]:
    """Apply McNemar's test to two methods, for the lowest seed with recorded images of both.

    Returns:
        Numbers of images gained and lost, and p; NaN if there is no such seed.
    """
    runs = records.of(records.runs, model=model, bits=bits)
    one, other = (
        {
            seed: records.correct.get(run)
            for seed, run in zip(mine["seed"], mine["run"], strict=True)
        }
        for mine in (records.of(runs, method=name) for name in (method, against))
    )
    shared = [(one[seed], other.get(seed)) for seed in sorted(one)]
    masks = [(a, b) for a, b in shared if a is not None and b is not None and len(a) == len(b)]
    if not masks:
        return math.nan, math.nan, math.nan
    test = mcnemar(*masks[0])
    return test.gained, test.lost, test.p


def _best(records: Records) -> set[tuple[str, str, str]]:
    """Return the cells whose primary measure is shown to be the best at their bits.

    That requires every paired test against another method, so the largest of their p-values
    counts, corrected for the number of a table's columns.
    """
    study, places, p_values = records.study, [], []
    for model, bits in product(study.models, study.bits):
        leaders = {m: _p_of_being_best(records, model, bits, m) for m in study.methods}
        method, p = min(leaders.items(), key=lambda leader: leader[1])
        places.append((model, bits, method))
        p_values.append(p)
    return {place for place, p in zip(places, holm(p_values), strict=True) if p < ALPHA}


def _p_of_being_best(records: Records, model: str, bits: str, method: str) -> float:
    """Return the largest p-value against other methods; 1 if one is as good, or has no result."""
    measure = measures(records.primary)[0]
    others = [name for name in records.study.methods if name != method]
    gaps = [difference(records, measure, model, bits, method, other) for other in others]
    tests = [gap.p for gap in gaps if gap is not None and gap.mean * measure.best > 0]
    tests = [p for p in tests if not math.isnan(p)]
    return max(tests) if tests and len(tests) == len(others) else 1.0
