"""Summaries of a study's cells over seeds, and pairwise comparisons of its methods."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise, product

import pandas as pd

from ofq.config import Cell, Study
from ofq.config.reference import Value
from ofq.report.blocks import Blocks, by_seed, qat_runs
from ofq.report.collect import Records
from ofq.report.measures import OSCILLATION_MID, SIZE, TOP1, Measure, measures
from ofq.report.pooling import Kind, Pool, Variance
from ofq.report.statistics import ALPHA, Summary, holm, images_interval, mcnemar, verdict
from ofq.report.verdicts import Distance, Reported, Spread, distance, exactly, judge


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
            row |= _summary(runs, measure, records.resplit)
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


def _summary(runs: pd.DataFrame, measure: Measure, resplit: float) -> dict[str, float]:
    values = runs[measure.key].dropna()
    fields = dict.fromkeys(("mean", "std", "low", "high"), math.nan)
    if len(values):
        summary = measure.over_seeds(values, resplit)
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
    """Compare the study's pairs of methods (:func:`pairs`), with seeds as blocks.

    Mid-run, a method's result is that of its QAT run: pairs that share it, and those whose QAT runs
    are compared already, are left out.

    Returns:
        One row per measure, model, bits and pair: ``mean`` of method − against over the seeds that
        have both, ``std``, ``low``, ``high``, ``error``, ``df``, ``p`` by the variance that
        :class:`ofq.report.blocks.Blocks` pools; ``family``, ``primary`` for the study's contrasts
        on their measures, else ``exploratory``; ``p_holm``, corrected over all primary rows, empty
        for others; ``verdict``; ``detectable``, the smallest true difference that would be shown
        with 80 % power, for primary rows at the strictest step of the correction, empty if none
        that is possible would; ``correlation`` of the two methods over the seeds. Further, where
        they share a single seed, for accuracy whatever the measure, ``gained`` and ``lost``, the
        images that only the method or only the other classifies correctly, with McNemar's
        ``p_mcnemar`` and, over the primary pairs, ``p_mcnemar_holm``; empty where correct images
        aren't recorded. ``reported`` is the difference in accuracy that others reported, with its
        ``source`` and the verdict ``against_reported`` of :mod:`ofq.report.verdicts`, corrected
        over all such rows; columns that are there only if a difference of the study is known.
    """
    rows, summaries, correlations = [], [], []
    for measure in measures(records.primary):
        blocks = Blocks.of(records, measure)
        for names in _comparisons(records, measure):
            model, bits, method, against = names
            summary = blocks.difference((model, bits), method, against)
            if summary is not None:
                family = family_of(records, measure, method, against)
                rows.append((measure.key, *names, family))
                summaries.append(summary)
                correlations.append(blocks.correlation((model, bits), method, against))
    frame = pd.DataFrame(rows, columns=["measure", *_PAIR, "family"])
    primary = [family == "primary" for family in frame["family"]]
    facts = tested(summaries, primary)
    strictest = ALPHA / max(1, int(facts["p_holm"].notna().sum()))
    by_key = {measure.key: measure for measure in measures(records.primary)}
    detectable = [
        by_key[key].detectable(summary, strictest if counted else ALPHA)
        for key, summary, counted in zip(frame["measure"], summaries, primary, strict=True)
    ]
    found = frame.join(facts.assign(detectable=detectable, correlation=correlations))
    found = found.merge(_disagreements(records, found), on=_PAIR, how="left")
    return _beside_reported(records, found)


_PAIR = ["model", "bits", "method", "against"]


def _beside_reported(records: Records, found: pd.DataFrame) -> pd.DataFrame:
    """Add the reported differences, and the verdicts on ours."""
    known = {
        (TOP1.key, *value.cell, value.against): value
        for reference in reversed(records.references)
        for value in reference.values
        if value.against is not None and value.by_others
    }
    pairs_found = list(found[["measure", *_PAIR]].itertuples(index=False, name=None))
    values = [known.get(pair) for pair in pairs_found]
    if not any(values):
        return found
    family, blocks = sum(value is not None for value in values), Blocks.of(records, TOP1)
    distances = []
    for (_, model, bits, method, against), value in zip(pairs_found, values, strict=True):
        if value is None:
            distances.append(Distance(0, math.nan))
            continue
        ours, variance = blocks.weighted((model, bits), {method: 1.0, against: -1.0})
        reported = Reported(value.value, value.runs, value.std, is_difference=True)
        spread = Spread(variance, records.resplit)
        distances.append(distance(ours, reported, spread, family))
    adjusted = holm([d.p for d in distances])
    return found.assign(
        reported=[math.nan if v is None else v.value for v in values],
        source=["" if v is None else f"{v.status}: {v.source}" for v in values],
        against_reported=[
            judge(d, p) if d.n else "" for d, p in zip(distances, adjusted, strict=True)
        ],
    )


def family_of(records: Records, measure: Measure, method: str, against: str) -> str:
    """Return ``primary`` if a contrast of the study is answered by this, else ``exploratory``."""
    asked = (
        (contrast.method, contrast.against, contrast.measure or records.primary)
        for contrast in records.study.contrasts
    )
    return "primary" if (method, against, measure.key) in asked else "exploratory"


def _comparisons(records: Records, measure: Measure) -> Iterator[tuple[str, str, str, str]]:
    """Yield model, bits, method and against of each comparison, none of the same runs twice."""
    qat = qat_runs(records) if measure is OSCILLATION_MID else {}
    for model, bits in product(records.study.models, records.study.bits):
        seen: set[frozenset[tuple[str, ...] | None]] = set()
        for method, against in pairs(records.study):
            if qat:
                sides = frozenset(qat.get((model, bits, name)) for name in (method, against))
                if len(sides) < 2 or sides in seen:
                    continue
                seen.add(sides)
            yield model, bits, method, against


def _disagreements(records: Records, found: pd.DataFrame) -> pd.DataFrame:
    """Return the disagreement over images of each pair that shares a single seed."""
    alone = found[found["n"] == 1].assign(primary=lambda rows: rows["family"] == "primary")
    counted = alone.groupby(_PAIR, sort=False)["primary"].any().reset_index()
    rows = [
        (*names, *_disagreement(records, *names), primary)
        for *names, primary in counted.itertuples(index=False, name=None)
    ]
    columns = [*_PAIR, "gained", "lost", "p_mcnemar", "primary"]
    numbers = dict.fromkeys(columns[len(_PAIR) : -1], float)
    marks = pd.DataFrame(rows, columns=columns).astype(numbers | {"primary": bool})
    adjusted = holm(marks["p_mcnemar"].where(marks["primary"]).tolist())
    return marks.drop(columns="primary").assign(p_mcnemar_holm=adjusted)


def tested(summaries: Sequence[Summary], primary: Sequence[bool]) -> pd.DataFrame:
    """Test each of some differences against 0.

    Args:
        summaries: The differences.
        primary: Whether each belongs to the family that is corrected.

    Returns:
        One row per difference: its summary, ``p``, ``p_holm`` (NaN outside the family) and
        ``verdict``.
    """
    facts = pd.DataFrame([asdict(s) for s in summaries], columns=list(Summary.__annotations__))
    adjusted = holm([s.p if c else math.nan for s, c in zip(summaries, primary, strict=True)])
    return facts.assign(
        p_holm=adjusted,
        verdict=[verdict(s, p) for s, p in zip(summaries, adjusted, strict=True)],
    )


_REPORTED = [
    "model", "bits", "method", "label", "mean", "reported", "status", "source", "reference",
    "missing", "runs", "seeds", "commits",
]  # fmt: skip


def hold_against(records: Records) -> pd.DataFrame:
    """Compare the study's results with those that others reported (:mod:`ofq.report.verdicts`).

    Returns:
        One row per reported result of one of the study's cells: ``n`` seeds, ``mean``,
        ``reported`` with ``status``, ``source`` and ``reference``, ``difference``, ``low``,
        ``high``, ``p``, ``p_holm`` (the family is all trained rows), ``detectable``,
        ``by_images``, ``df``, ``verdict``, and the origin of our result as in
        :func:`summarize_cells`; ``missing`` is the reason why there is none.
    """
    reported = _reported(records)
    cells = [cell for cell in records.cells if cell.place in reported]
    runs_by_cell = [records.runs_of(cell) for cell in cells]
    family = sum(not runs.empty and not _untrained(runs) for runs in runs_by_cell)
    pool = _pool(records)
    rows, distances = [], []
    for cell, runs in zip(cells, runs_by_cell, strict=True):
        title, value = reported[cell.place]
        missing = records.reasons.get(cell.place)
        known = Reported(value.value, value.runs, value.std)
        spread = Spread(
            pool.variance((cell.model, cell.bits), Variance.of(runs["top1"])),
            records.resplit,
            # no interval over images is given while seeds are missing
            images_of(runs) if missing is None else 0,
        )
        distances.append(_distance(runs, known, spread, family))
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


def _pool(records: Records) -> Pool:
    """Pool the seeds' variance of accuracy over all trained cells of the study."""
    kinds = dict.fromkeys((cell.model, cell.bits) for cell in records.cells)
    trained = {kind: records.of(records.runs, model=kind[0], bits=kind[1]) for kind in kinds}
    return Pool.of_cells(
        {
            kind: by_seed(runs, "top1")
            for kind, runs in trained.items()
            if not runs.empty and not _untrained(runs)
        }
    )


def _without_number(missing: object) -> str:
    """Return the verdict on a cell without a result, given the reason."""
    return "damaged" if str(missing).startswith("damaged") else "not run"


def _distance(runs: pd.DataFrame, reported: Reported, spread: Spread, family: int) -> Distance:
    if runs.empty:
        return Distance(0, math.nan)
    if _untrained(runs):
        return exactly(runs["top1"].mean(), reported.value)
    return distance(runs["top1"], reported, spread, family)


def _untrained(runs: pd.DataFrame) -> bool:
    """Return whether a cell's runs evaluate given weights."""
    return bool((runs["chain"] == runs["run"]).all() and (runs["steps"] == 0).all())


def _reported(records: Records) -> dict[tuple[str, str, str], tuple[str, Value]]:
    """Return each cell's reported result, with the title of the first reference that has it."""
    reported: dict[tuple[str, str, str], tuple[str, Value]] = {}
    for reference in records.references:
        for value in reference.values:
            if value.by_others and value.against is None:
                reported.setdefault(value.cell, (reference.title, value))
    return reported


def pairs(study: Study) -> list[tuple[str, str]]:
    """Return (method, against) of every comparison.

    These are the study's contrasts, if it has any, then the others. If it has factors, each of them
    added to each combination of the others, then all of them against none; else each method against
    the one before it, then each against the first.
    """
    methods = study.methods
    asked = [(c.method, c.against) for c in study.contrasts]
    if study.factors:
        others = _factor_by_factor(study)
    else:
        added = [(after, before) for before, after in pairwise(methods)]
        others = [*added, *((method, methods[0]) for method in methods[2:])]
    # The same two methods the other way round are the same comparison.
    others = [(one, other) for one, other in others if (other, one) not in asked]
    return list(dict.fromkeys([*asked, *others]))


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

    That requires every test against another method, so the largest of their p-values counts,
    corrected for the number of a table's columns.
    """
    study, places, p_values = records.study, [], []
    blocks = Blocks.of(records, measures(records.primary)[0])
    for model, bits in product(study.models, study.bits):
        tried = [method for method in study.methods if bits in study.bits_of(method)]
        leaders = {m: _p_of_being_best(blocks, tried, (model, bits), m) for m in tried}
        method, p = min(leaders.items(), key=lambda leader: leader[1])
        places.append((model, bits, method))
        p_values.append(p)
    return {place for place, p in zip(places, holm(p_values), strict=True) if p < ALPHA}


def _p_of_being_best(blocks: Blocks, methods: list[str], kind: Kind, method: str) -> float:
    """Return the largest p-value against other methods; 1 if one is as good, or has no result."""
    others = [name for name in methods if name != method]
    gaps = [blocks.difference(kind, method, other) for other in others]
    tests = [gap.p for gap in gaps if gap is not None and gap.mean * blocks.measure.best > 0]
    tests = [p for p in tests if not math.isnan(p)]
    return max(tests) if tests and len(tests) == len(others) else 1.0
