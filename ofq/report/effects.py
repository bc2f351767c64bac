"""Main effects and interactions of a study whose methods are all combinations of some factors."""

from itertools import combinations

import pandas as pd

from ofq.report.blocks import Blocks
from ofq.report.collect import Records
from ofq.report.compare import tested
from ofq.report.measures import Measure, measures, p_text


def effects(records: Records) -> pd.DataFrame:
    """Compute main effects and interactions of a study's factors.

    For k factors at levels ±1, the effect of a set of factors on one seed is the sum over the 2^k
    methods of their results times the product of the set's levels, over 2^(k−1): for one factor the
    mean difference of having and not having it, for several the interaction (Box, Hunter and
    Hunter, *Statistics for Experimenters*). Seeds are
    the blocks, and the variance is that of :class:`ofq.report.blocks.Blocks`.

    Returns:
        One row per measure, model, bits and set of factors: ``effect`` (names with × between
        them), ``order`` (their number), ``n``, ``mean``, ``std``, ``low``, ``high``, ``error``,
        ``df``, ``p``, ``p_holm`` (the family is all rows of one measure) and ``verdict``
        (:func:`ofq.report.statistics.verdict`). Empty for a study without factors.
    """
    if not records.study.factors:
        return pd.DataFrame()
    frames = [_effects(records, measure) for measure in measures(records.primary)]
    return pd.concat(frames, ignore_index=True)


def _effects(records: Records, measure: Measure) -> pd.DataFrame:
    study, factors = records.study, list(records.study.factors)
    blocks = Blocks.of(records, measure)
    signs = pd.DataFrame(
        {f: [1 if m in study.factors[f] else -1 for m in study.methods] for f in factors},
        index=study.methods,
    )
    rows, summaries = [], []
    for model in study.models:
        for bits in study.bits:
            for order in range(1, len(factors) + 1):
                for chosen in combinations(factors, order):
                    weights = signs[list(chosen)].prod(axis=1) / 2 ** (len(factors) - 1)
                    summary = blocks.contrast((model, bits), weights.to_dict())
                    if summary is not None:
                        summaries.append(summary)
                        rows.append((measure.key, model, bits, " × ".join(chosen), order))
    frame = pd.DataFrame(rows, columns=["measure", "model", "bits", "effect", "order"])
    return frame.join(tested(summaries, [True] * len(summaries)))


def effect_rows(records: Records, found: pd.DataFrame) -> list[dict[str, str]]:
    """Return effects on the primary measure, as printed."""
    if found.empty:
        return []
    measure = measures(records.primary)[0]
    return [
        {
            "model": row["model"],
            "bits": row["bits"],
            "effect": row["effect"],
            "verdict": row["verdict"],
            "mean": measure.signed(row["mean"]),
            "interval": measure.interval(row["low"], row["high"]) or "–",
            "p_holm": p_text(row["p_holm"]),
            "n": str(row["n"]),
        }
        for _, row in found[found["measure"] == measure.key].iterrows()
    ]
