"""Main effects and interactions of a study whose methods are all combinations of some factors."""

from itertools import combinations

import numpy as np
import pandas as pd

from ofq.report.collect import Records
from ofq.report.compare import tested
from ofq.report.measures import Measure, measures, p_text
from ofq.report.statistics import summarize


def effects(records: Records) -> pd.DataFrame:
    """Compute main effects and interactions of a study's factors.

    For k factors at levels ±1, the effect of a set of factors on one seed is the sum over the 2^k
    methods of their results times the product of the set's levels, over 2^(k−1): for one factor the
    mean difference of having and not having it, for several the interaction (Box, Hunter and
    Hunter, *Statistics for Experimenters*). Seeds are the replicates.

    Returns:
        One row per measure, model, bits and set of factors: ``effect`` (names with × between
        them), ``order`` (their number), ``n``, ``mean``, ``std``, ``low``, ``high``, ``p``,
        ``p_holm`` (the family is all rows of one measure) and ``verdict``
        (:func:`ofq.report.statistics.verdict`). Empty for a study without factors.
    """
    if not records.study.factors:
        return pd.DataFrame()
    frames = [_effects(records, measure) for measure in measures(records.primary)]
    return pd.concat(frames, ignore_index=True)


def _effects(records: Records, measure: Measure) -> pd.DataFrame:
    study, factors = records.study, list(records.study.factors)
    signs = pd.DataFrame(
        {f: [1 if m in study.factors[f] else -1 for m in study.methods] for f in factors},
        index=study.methods,
    )
    rows, summaries = [], []
    for model in study.models:
        for bits in study.bits:
            runs = records.of(records.runs, model=model, bits=bits)
            table = runs.pivot_table(values=measure.key, index="seed", columns="method")
            table = table.reindex(columns=study.methods).dropna()  # keeps seeds with all methods
            for order in range(1, len(factors) + 1):
                for chosen in combinations(factors, order):
                    if len(table):
                        product = signs[list(chosen)].prod(axis=1).to_numpy()
                        values = table.to_numpy() @ product / 2 ** (len(factors) - 1)
                        summaries.append(summarize(np.asarray(values)))
                        rows.append((measure.key, model, bits, " × ".join(chosen), order))
    frame = pd.DataFrame(rows, columns=["measure", "model", "bits", "effect", "order"])
    return frame.join(tested(summaries))


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
