"""Results of one measure with seeds as blocks: contrasts of methods, and their correlation."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Self

import numpy as np
import pandas as pd

from ofq.report.collect import Records
from ofq.report.measures import OSCILLATION_MID, Measure
from ofq.report.pooling import Kind, Pool, Variance
from ofq.report.statistics import Summary, summarize


@dataclass(frozen=True)
class Blocks:
    """Results of one measure by model and bits, each a table of seeds by methods.

    Attributes:
        measure: The measure.
        tables: One row per seed, one column per method with results; NaN where missing.
        pool: Variance of what is left of them without the means of methods and seeds.
        resplit: As :func:`ofq.report.statistics.summarize` has it.
    """

    measure: Measure
    tables: dict[Kind, pd.DataFrame]
    pool: Pool
    resplit: float

    @classmethod
    def of(cls, records: Records, measure: Measure) -> Self:
        """Tabulate a study's quantized cells, and pool their variances."""
        tables = {
            (model, bits): by_seed(records.of(records.runs, model=model, bits=bits), measure.key)
            for model, bits in product(records.study.models, records.study.bits)
        }
        counted = tables
        if measure is OSCILLATION_MID:  # methods that share a QAT run share a result, counted once
            qat = qat_runs(records)
            counted = {
                kind: table.T.groupby(
                    [" ".join(qat[kind[0], kind[1], str(method)]) for method in table]
                )
                .first()
                .T
                for kind, table in tables.items()
            }
        return cls(measure, tables, Pool.of_blocks(counted), records.resplit)

    def difference(self, kind: Kind, method: str, against: str) -> Summary | None:
        """Summarize differences of two methods on the same seeds; None if there are none."""
        return self.contrast(kind, {method: 1.0, against: -1.0})

    def contrast(self, kind: Kind, weights: Mapping[str, float]) -> Summary | None:
        """Summarize a weighted sum of methods' results over seeds.

        Args:
            kind: Model and bits.
            weights: Each method's weight.

        Returns:
            The summary, by the moderated variance; None if no seed has all these methods.
        """
        values, variance = self.weighted(kind, weights)
        if values.empty:
            return None
        return self.measure.possible(summarize(values, variance, self.resplit))

    def weighted(
        self, kind: Kind, weights: Mapping[str, float]
    ) -> "tuple[pd.Series[float], Variance]":
        """Return a weighted sum of methods' results by seed, and its moderated variance."""
        table = self.tables[kind].reindex(columns=list(weights))
        values: pd.Series[float] = table.dot(pd.Series(weights)).dropna()
        weight = sum(w**2 for w in weights.values())
        variance = self.pool.variance(kind, Variance.of(values, weight))
        return values, Variance(weight * variance.value, variance.df)

    def correlation(self, kind: Kind, method: str, against: str) -> float:
        """Return the correlation of two methods over at least three seeds; NaN if there is none."""
        pair = self.tables[kind].reindex(columns=[method, against]).dropna()
        return _correlation(pair)

    def mean_correlation(self) -> float:
        """Return the mean correlation over seeds of all pairs of methods at the same bits."""
        found = [
            _correlation(table[list(pair)].dropna())
            for table in self.tables.values()
            for pair in combinations(table, 2)
        ]
        known = [r for r in found if np.isfinite(r)]
        return float(np.mean(known)) if known else np.nan


def qat_runs(records: Records) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Return the QAT runs of each cell, one per seed."""
    return {
        cell.place: tuple(
            link.id for run in cell.runs for link in run.chain() if link.config.stage == "qat"
        )
        for cell in records.cells
    }


def by_seed(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return one column of ``runs`` as a table of seeds by methods, without empty columns."""
    known = runs.assign(**{key: runs[key].astype(float)})
    return known.pivot_table(values=key, index="seed", columns="method", sort=False)


def _correlation(pair: pd.DataFrame) -> float:
    varies = len(pair) > 2 and bool((pair.std() > 0).all())
    return float(np.corrcoef(pair.to_numpy().T)[0, 1]) if varies else np.nan
