"""Variance over seeds, pooled over a study's cells of one kind and moderated.

A kind is a model at some bits; each of its methods has a result for each seed. Few seeds tell
little about one method's variance, but the methods of one kind, and the kinds of a study, are
alike. How much alike is estimated in the manner of limma (Smyth 2004, *Statistical Applications in
Genetics and Molecular Biology* 3:3): variances s² of similar groups, on d degrees of freedom each,
scatter around a common one s0² as if that were known from d0 further degrees of freedom. The
moderated variance is (d0·s0² + d·s²)/(d0 + d), on d0 + d degrees of freedom.

1. The pooled variances of the kinds are moderated over all kinds.
2. A method's or a comparison's own variance is moderated towards its kind's.

Other than in limma, s0² is the pooled variance, which is the larger where variances differ, and d0
stays within :data:`PRIOR_DF`: a study has some ten groups, not thousands of genes, from which d0
itself is hardly known. No result has more degrees of freedom than the data that it is made of.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

Kind = tuple[str, str]
"""Model and bits."""

PRIOR_DF = (4.0, 5.0)
"""Least and largest prior degrees of freedom.

In simulations with 2 to 10 seeds and nine numbers, deviations within a factor of three and a number
that is off by far, less loses power with two seeds, and more calls true numbers off.
"""


@dataclass(frozen=True)
class Variance:
    """Estimated variance with its degrees of freedom; 0 of them if nothing is known of it."""

    value: float = math.nan
    df: float = 0.0

    @classmethod
    def of(cls, values: ArrayLike, weight: float = 1.0) -> Self:
        """Estimate the variance of (n,) values, divided by ``weight``."""
        x = np.asarray(values, dtype=np.float64)
        if len(x) < 2:
            return cls()
        std = float(x.std(ddof=1))
        # Rounding leaves equal values a deviation of some 1e-16, which must not count as one.
        equal = std <= 1e-12 * max(1.0, float(np.abs(x).max()))
        return cls(0.0 if equal else std**2 / weight, len(x) - 1)

    @property
    def known(self) -> bool:
        """Return whether there is an estimate other than 0."""
        return self.df > 0 and self.value > 0

    def towards(self, prior: "Variance", most: float) -> "Variance":
        """Return the moderated variance.

        Args:
            prior: Variance towards which this is moved.
            most: Limit of the result's degrees of freedom, unless it has more by itself.
        """
        both = prior.df + self.df
        own = self.df * self.value if self.df else 0.0
        return Variance((prior.df * prior.value + own) / both, max(self.df, min(both, most)))


def pooled(variances: Sequence[Variance]) -> Variance:
    """Return the mean of variances, weighted by their degrees of freedom."""
    df = sum(v.df for v in variances)
    return Variance(sum(v.df * v.value for v in variances if v.df) / df, df) if df else Variance()


def prior_of(groups: Sequence[Sequence[Variance]]) -> float:
    """Return the prior degrees of freedom d0 of variances that are alike within each group.

    The logarithm of a sample variance has the variance ψ'(d/2); what the logarithms scatter beyond
    that within the groups is ψ'(d0/2).

    Args:
        groups: Variances of each group; those on no degrees of freedom don't count.

    Returns:
        d0, within :data:`PRIOR_DF`: the largest if variances scatter no more than equal ones do.
    """
    squares, noise, free = 0.0, [], 0
    for group in groups:
        logs, own = _logs([v for v in group if v.df > 0])
        if len(logs) > 1:
            squares += float(((logs - logs.mean()) ** 2).sum())
            free += len(logs) - 1
            noise += own.tolist()
    excess = squares / free - float(np.mean(noise)) if free else 0.0
    least, most = PRIOR_DF
    return float(np.clip(2 * _inverse_trigamma(excess), least, most)) if excess > 0 else most


def _logs(group: Sequence[Variance]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return unbiased logarithms of variances, and their own variances."""
    values, df = np.array([v.value for v in group]), np.array([v.df for v in group])
    if not len(values) or not values.any():
        return np.empty(0), np.empty(0)
    # A variance of 0 has no logarithm: as limma does, take it for a small share of the others.
    values = np.maximum(values, 1e-5 * (np.median(values) or values.max()))
    return (
        np.log(values) - special.digamma(df / 2) + np.log(df / 2),
        special.polygamma(1, df / 2),
    )


def _inverse_trigamma(y: float) -> float:
    """Return the x at which the trigamma function, falling from infinity to 0, is y > 0."""
    # 1/x < ψ'(x) < 1/x + 1/x²
    low, high = 1 / y, (1 + math.sqrt(1 + 4 * y)) / (2 * y)
    return float(optimize.brentq(lambda x: special.polygamma(1, x) - y, low, high))


@dataclass(frozen=True)
class Pool:
    """Moderated variances over seeds of one measure in a study.

    Attributes:
        kinds: Moderated variance of each kind that has results.
        within: Prior degrees of freedom of a method's own variance around its kind's.
    """

    kinds: dict[Kind, Variance]
    within: float

    @classmethod
    def of_cells(cls, tables: dict[Kind, pd.DataFrame]) -> Self:
        """Pool the variances of single cells over seeds.

        Args:
            tables: Results of each kind: one row per seed, one column per method, NaN where
                missing.
        """
        cells = {
            kind: [Variance.of(column[~np.isnan(column)]) for column in table.to_numpy(float).T]
            for kind, table in tables.items()
        }
        return cls._moderated({kind: pooled(c) for kind, c in cells.items()}, list(cells.values()))

    @classmethod
    def of_blocks(cls, tables: dict[Kind, pd.DataFrame]) -> Self:
        """Pool what is left of results without the means of methods and seeds.

        Each kind's results are method + seed + residual, fitted by least squares.

        Args:
            tables: As of :meth:`of_cells`.
        """
        fits = {kind: _residuals(table) for kind, table in tables.items()}
        # The residuals of two methods are each other's opposites, and can't be compared.
        comparable = [methods for _, methods in fits.values() if len(methods) > 2]
        return cls._moderated({kind: fit[0] for kind, fit in fits.items()}, comparable)

    @classmethod
    def _moderated(cls, kinds: dict[Kind, Variance], members: list[list[Variance]]) -> Self:
        within, informative = prior_of(members), [v for v in kinds.values() if v.known]
        if len(informative) < 2:  # nothing to moderate by
            return cls(kinds, within)
        common = pooled(informative)
        prior = Variance(common.value, prior_of([informative]))
        return cls({kind: v.towards(prior, common.df) for kind, v in kinds.items()}, within)

    def variance(self, kind: Kind, own: Variance) -> Variance:
        """Return the moderated variance of a cell or comparison.

        Args:
            kind: Its kind.
            own: The variance of its own values: of a comparison, for one method.

        Returns:
            The variance, not ``known`` where there is no estimate at all.
        """
        of_kind = self.kinds.get(kind, Variance())
        if not of_kind.known:
            return own
        return own.towards(Variance(of_kind.value, self.within), of_kind.df)


def _residuals(table: pd.DataFrame) -> tuple[Variance, list[Variance]]:
    """Return the residual variance of method + seed: of all results, and of each method's.

    A method's variance is its residuals' sum of squares over its expectation for a variance of 1.
    """
    long = table.stack().dropna()
    if long.empty:
        return Variance(), []
    seeds, methods = (pd.factorize(long.index.get_level_values(level))[0] for level in (0, 1))
    design = np.hstack([np.eye(seeds.max() + 1)[seeds], np.eye(methods.max() + 1)[methods]])
    base, sizes, _ = np.linalg.svd(design, full_matrices=False)
    base = base[:, sizes > 1e-9 * sizes[0]]
    y = long.to_numpy(dtype=np.float64)
    y = y - y.mean()
    left = y - base @ (base.T @ y)
    left[np.abs(left) <= 1e-12 * max(1.0, float(np.abs(y).max()))] = 0.0  # rounding
    df = len(y) - base.shape[1]
    if not df:
        return Variance(), []
    free = 1 - (base**2).sum(axis=1)
    members = []
    for number in range(methods.max() + 1):
        mine = methods == number
        if (expected := float(free[mine].sum())) > 1e-9 and mine.sum() > 1:
            members.append(Variance(float((left[mine] ** 2).sum()) / expected, mine.sum() - 1))
    return Variance(float((left**2).sum()) / df, df), members
