"""Verdicts on claims: one number for each seed, its interval, and what the claim says of it."""

import math
from bisect import bisect_left
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ofq.config.claims import Claim, Pair
from ofq.report.blocks import Blocks
from ofq.report.collect import Records
from ofq.report.curves import KEYS
from ofq.report.measures import measures
from ofq.report.noise import draws
from ofq.report.statistics import ALPHA, Summary, detectable, holm, summarize

_MOST_SEEDS = 1000
_MOST = {"top1": 100.0, "noise_gain": 100.0, "accuracy_by_oscillation": 1.0} | dict.fromkeys(
    ("oscillation_rate_mid", "oscillation_rate_end"), 100.0
)
"""The largest possible size of a difference, by measure; others have none."""
COLUMNS = [
    "claim", "text", "source", "published", "model", "bits", "measure", "expected", "margin",
    "verdict", "difference", "low", "high", "p", "p_holm", "seeds", "seeds_to_decide",
    "control", "control_difference", "control_low", "control_high",
]  # fmt: skip


def judge_claims(records: Records) -> pd.DataFrame:
    """Judge each claim that the study tests, for each model.

    Returns:
        One row per claim and model: ``verdict`` (:func:`judge`), ``difference`` with its 95 %
        interval (``low``, ``high``), ``p`` and ``p_holm`` (the family is all claims tested),
        ``seeds``, ``seeds_to_decide`` in a new study where it is undecided, and the matched
        ``control``'s difference with its interval.
    """
    tested = [
        (name, model, claim)
        for name, claim in records.claims.items()
        for model in records.study.models
        if claim.compared_by(records.study, claim.test)
    ]
    blocks = {measure.key: Blocks.of(records, measure) for measure in measures(records.primary)}
    found = [
        summarize_claim(records, blocks, claim, model, claim.test) for _, model, claim in tested
    ]
    adjusted = holm([math.nan if s is None else s.p for s in found])
    rows = [
        _row(records, blocks, name, (model, claim), summary, p)
        for (name, model, claim), summary, p in zip(tested, found, adjusted, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def judge(claim: Claim, summary: Summary | None, p_holm: float) -> str:
    """Return the verdict on a claim.

    Returns:
        ``holds``: the number has the claim's sign, after correction; for ``equal``, its interval is
        within the margin. ``contradicted``: it has the other sign, after correction; for ``equal``,
        its interval is outside the margin. ``no difference``: the interval is within the margin.
        ``undecided``: none of these. ``not tested``: no seed has the numbers.
    """
    if summary is None:
        return "not tested"
    low, high, margin = summary.low, summary.high, claim.margin
    if math.isnan(low):
        return "undecided"
    within = -margin <= low and high <= margin
    if claim.expected == "equal":
        outside = low > margin or high < -margin
        return "holds" if within else "contradicted" if outside else "undecided"
    sign = 1 if claim.expected == "above" else -1
    if p_holm < ALPHA and summary.excludes_zero:
        return "holds" if sign * summary.mean > 0 else "contradicted"
    return "no difference" if within else "undecided"


def summarize_claim(
    records: Records, blocks: dict[str, Blocks], claim: Claim, model: str, pair: Pair | None
) -> Summary | None:
    """Summarize a claim's number over seeds; None if no seed has it.

    A difference of two methods is tested as :func:`ofq.report.compare.compare` does, by the
    variance pooled over the study (``blocks``, by measure); other numbers by their own.
    """
    if claim.measure in blocks and pair and pair.against and claim.and_bits is None:
        kind = (model, claim.bits)
        return blocks[claim.measure].difference(kind, pair.method, pair.against)
    values = _values(records, claim, model, claim.bits, pair)
    if claim.and_bits is not None:
        values = values - _values(records, claim, model, claim.and_bits, pair)
    values = values.dropna()
    if values.empty:
        return None
    summary = summarize(values, resplit=records.resplit)
    most = _MOST.get(claim.measure, math.inf) * (1 if claim.and_bits is None else 2)
    low, high = np.clip([summary.low, summary.high], -most, most).tolist()
    return replace(summary, low=low, high=high)


def _values(
    records: Records, claim: Claim, model: str, bits: str, pair: Pair | None
) -> "pd.Series[float]":
    """Return a claim's number by seed."""
    runs = records.of(records.runs, model=model, bits=bits)
    if pair is None:
        # after QAT: what follows has the same oscillation mid-run as the QAT that it follows
        qat = {cell.method for cell in records.cells if cell.runs[0].config.stage == "qat"}
        return _correlations(runs[runs["method"].isin(qat).to_numpy()])
    quantity = _quantity(records, claim.measure, runs)
    sides = [quantity[(runs["method"] == method).to_numpy()] for method in pair.methods]
    return sides[0] - sides[1] if len(sides) == 2 else sides[0]


def _quantity(records: Records, measure: str, runs: pd.DataFrame) -> "pd.Series[float]":
    """Return a measure of runs, by seed; it aligns with the methods of ``runs``."""
    if measure == "co_flips":
        rows = records.curves.read("joint_flips").reindex(columns=[*KEYS, "joint", "expected"])
        totals = rows.groupby(KEYS, observed=True)[["joint", "expected"]].sum()
        column = totals["joint"] / totals["expected"].where(totals["expected"] > 0)
    elif measure == "noise_gain":
        rows = draws(records).reindex(columns=[*KEYS, "gain"])
        column = rows.groupby(KEYS, observed=True)["gain"].mean()
    else:
        column = runs.set_index(KEYS)[measure]
    known = column.to_dict()
    keys = runs[KEYS].itertuples(index=False, name=None)
    values = np.array([known.get(key, math.nan) for key in keys], dtype=np.float64)
    return pd.Series(values, index=runs["seed"])


def _correlations(runs: pd.DataFrame) -> "pd.Series[float]":
    """Return Spearman's correlation of accuracy with oscillation over methods, by seed.

    A seed with fewer than three methods has none: two are always perfectly correlated.
    """
    known = runs.dropna(subset=["top1", "oscillation_rate_mid"])
    known = known[(known.groupby("seed")["method"].transform("size") > 2).to_numpy(bool)]
    ranks = known.groupby("seed")[["top1", "oscillation_rate_mid"]].rank()
    ranks = ranks.assign(seed=known["seed"])
    return ranks.groupby("seed").apply(
        lambda of_seed: of_seed["top1"].corr(of_seed["oscillation_rate_mid"])
    )


def _row(
    records: Records,
    blocks: dict[str, Blocks],
    name: str,
    tested: tuple[str, Claim],
    summary: Summary | None,
    p_holm: float,
) -> dict[str, Any]:
    model, claim = tested
    verdict = judge(claim, summary, p_holm)
    control = None
    pair = claim.control
    if pair is not None and claim.compared_by(records.study, pair):
        control = summarize_claim(records, blocks, claim, model, pair)
    facts = summary or Summary(0, math.nan, math.nan)
    beside = control or Summary(0, math.nan, math.nan)
    return {
        "claim": name,
        "text": claim.claim,
        "source": claim.source,
        "published": claim.published,
        "model": model,
        "bits": claim.bits + (f" − {claim.and_bits}" if claim.and_bits else ""),
        "measure": claim.measure,
        "expected": claim.expected,
        "margin": claim.margin,
        "verdict": verdict,
        "difference": facts.mean,
        "low": facts.low,
        "high": facts.high,
        "p": facts.p,
        "p_holm": p_holm,
        "seeds": facts.n,
        "seeds_to_decide": (
            seeds_to_decide(claim, facts, records.resplit) if verdict == "undecided" else None
        ),
        "control": " − ".join(pair.methods) if control and pair else "",
        "control_difference": beside.mean,
        "control_low": beside.low,
        "control_high": beside.high,
    }


def seeds_to_decide(claim: Claim, summary: Summary, resplit: float) -> int | None:
    """Return the seeds with which a difference of the margin's size would be shown.

    In a new study, with 80 % power; None if that is more than 1,000, or the spread isn't known.
    """
    if not (summary.std > 0 and claim.margin > 0):
        return None

    def shown(n: int) -> bool:
        error = summary.std * math.sqrt(1 / n + resplit)
        return detectable(error, n - 1) <= claim.margin

    # what n seeds show, more of them show too
    n = bisect_left(range(2, _MOST_SEEDS + 1), True, key=shown) + 2
    return n if n <= _MOST_SEEDS else None
