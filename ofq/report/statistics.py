"""Means with intervals and tests, Holm's correction and power, on plain arrays.

All intervals and tests over seeds are Student's t at 95 %, since their small number limits what can
be shown. Those over images are binomial.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from ofq.report.pooling import Variance

ALPHA = 0.05
POWER = 0.8
_QUANTILES = 20_000  # enough for a mean of four digits
_MOST_DF = 1000.0  # beyond, t is normal for all that is printed


@dataclass(frozen=True)
class Summary:
    """Mean of n values with standard deviation, interval and test.

    Attributes:
        n: Number of values (seeds).
        mean: Their mean.
        std: Sample standard deviation (n − 1); NaN for one value.
        low, high: 95 % t interval of the mean; NaN where no variance is known.
        error: Standard error of the mean; NaN like the interval.
        df: Degrees of freedom of the error.
        p: Two-sided p-value of the mean being 0; NaN like the interval.
    """

    n: int
    mean: float
    std: float
    low: float = math.nan
    high: float = math.nan
    error: float = math.nan
    df: float = math.nan
    p: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval lies wholly above or below 0."""
        return self.low > 0 or self.high < 0


def summarize(values: ArrayLike, variance: Variance | None = None, resplit: float = 0.0) -> Summary:
    """Compute mean, sample standard deviation, 95 % t interval and test against 0.

    The mean's variance is σ²·(1/n + resplit): where seeds re-split one set of images, their
    training sets overlap, so that results differ less than on fresh images (Nadeau and Bengio
    2003, *Machine Learning* 52:239).

    Without a variance from elsewhere, equal values get no interval: with few seeds and countable
    images, they are a coincidence and no measure of certainty.

    Args:
        values: (n,) numbers, n ≥ 1.
        variance: Variance σ² of one value; left out, the values' own.
        resplit: Number of test images over that of training images, where seeds re-split one set.
    """
    x = np.asarray(values, dtype=np.float64)
    n, mean, own = len(x), float(x.mean()), Variance.of(x)
    std = math.sqrt(own.value) if n > 1 else math.nan
    known = variance or own
    if not known.known:
        return Summary(n, mean, std)
    error = math.sqrt(known.value * (1 / n + resplit))
    half, p = student(mean, error, known.df)
    return Summary(n, mean, std, mean - half, mean + half, error, known.df, p)


def student(mean: float, error: float, df: float) -> tuple[float, float]:
    """Return half the 95 % t interval of a mean, and the two-sided p-value of its being 0.

    Args:
        mean: The mean.
        error: Its standard error, above 0.
        df: The error's degrees of freedom.
    """
    half = float(special.stdtrit(df, 1 - ALPHA / 2)) * error
    return half, 2 * float(special.stdtr(df, -abs(mean) / error))


def images_interval(accuracy: float, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of one model's accuracy on other images of the same kind.

    It doesn't cover variation over seeds.

    Args:
        accuracy: Accuracy in percent.
        images: Number of evaluation images, at least 1.

    Returns:
        Lower and upper bound, in percent.
    """
    correct = round(accuracy / 100 * images)
    interval = stats.binomtest(correct, images).proportion_ci(1 - ALPHA, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Apply Holm's step-down correction.

    Args:
        p_values: (m,) p-values of one family; NaN marks untested ones, which aren't counted.

    Returns:
        (m,) adjusted p-values: rejecting those below 5 % keeps the chance of any false rejection
        in the family below 5 %.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)  # NaN last
    tested = order[: np.isfinite(p).sum()]
    steps = p[tested] * np.arange(len(tested), 0, -1)
    adjusted = np.full_like(p, np.nan)
    adjusted[tested] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


@dataclass(frozen=True)
class Discordance:
    """Disagreement of two methods over images.

    Attributes:
        gained: Number of images that only the first classifies correctly.
        lost: Number of images that only the second classifies correctly.
        p: Exact two-sided p-value of McNemar's test that disagreements are equally likely either
            way; NaN without any.
    """

    gained: int
    lost: int
    p: float


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Discordance:
    """Apply McNemar's exact test to two models.

    It is about these trained models on other images, and doesn't cover variation over seeds.

    Args:
        one: (N,) mask of the images that the first classifies correctly.
        other: (N,) mask of the images that the second classifies correctly.
    """
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    if gained + lost == 0:
        return Discordance(0, 0, math.nan)
    return Discordance(gained, lost, float(stats.binomtest(gained, gained + lost).pvalue))


def detectable(error: float, df: float, alpha: float = ALPHA) -> float:
    """Return the smallest true difference that one t test would show with 80 % power.

    Args:
        error: Standard error of the tested quantity.
        df: Its degrees of freedom, which are rounded down.
        alpha: The test's level.

    Returns:
        The difference, in the unit of ``error``; NaN without an error.
    """
    if not (error > 0 and df >= 1):
        return math.nan
    return _noncentrality(int(min(df, _MOST_DF)), alpha) * error


@lru_cache
def _noncentrality(df: int, alpha: float) -> float:
    """Return the noncentrality at which a two-sided t test has the power.

    It is in standard errors. Given the sample's standard deviation over the true one,
    W = sqrt(χ²/df), t is normal: the power is a mean over W's quantiles. scipy's noncentral t
    fails at small levels.
    """
    critical = stats.t.ppf(1 - alpha / 2, df)
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    reach = critical * np.sqrt(stats.chi2.ppf(shares, df) / df)

    def missing_power(delta: float) -> float:
        shown = stats.norm.sf(reach - delta) + stats.norm.cdf(-reach - delta)
        return float(shown.mean()) - POWER

    return float(optimize.brentq(missing_power, 0.0, 3 * critical + 10))


def verdict(summary: Summary, p_holm: float) -> str:
    """Return the verdict on a difference.

    Args:
        summary: The difference.
        p_holm: Its p-value after Holm's correction; NaN for an exploratory one, of no family.

    Returns:
        ``holds``: the interval excludes 0, after correction too. ``suggestive``: it excludes 0,
        but not after correction, or is exploratory. ``not shown``: it includes 0. ``identical``: 0
        for every seed. ``no interval``: no variance is known, as with one seed, or equal
        differences in all seeds.
    """
    if math.isnan(summary.low):
        return "identical" if summary.n > 1 and abs(summary.mean) < 1e-12 else "no interval"
    if not summary.excludes_zero:
        return "not shown"
    return "holds" if p_holm < ALPHA else "suggestive"
