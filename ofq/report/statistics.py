"""Means, paired differences, Holm's correction and power, on plain arrays.

All intervals and tests over seeds are Student's t at 95 %: seeds are few, and their number is what
limits what can be shown. Those over images are binomial.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

ALPHA = 0.05
POWER = 0.8
_QUANTILES = 20_000  # of which a mean is taken, for four digits


@dataclass(frozen=True)
class Summary:
    """Mean of n values with its spread.

    Attributes:
        n: Number of values (seeds).
        mean: Their mean.
        std: Sample standard deviation (n − 1); NaN for one value.
        low, high: 95 % t interval of the mean; NaN where the values have no spread.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float

    @property
    def p(self) -> float:
        """Two-sided p-value of the mean being 0; NaN without an interval."""
        if math.isnan(self.low):
            return math.nan
        t = self.mean / (self.std / math.sqrt(self.n))
        return float(2 * stats.t.sf(abs(t), self.n - 1))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly above or below 0."""
        return self.low > 0 or self.high < 0


def summarize(values: ArrayLike) -> Summary:
    """Mean, sample standard deviation and 95 % t interval.

    Values without any spread get no interval: with few seeds and countable images, equal values
    are a coincidence and no measure of certainty.

    Args:
        values: (n,) numbers, n ≥ 1.
    """
    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    std = float(x.std(ddof=1)) if n > 1 else math.nan
    # Rounding leaves equal differences a spread of some 1e-16, which must not count as one.
    if n > 1 and std <= 1e-12 * max(1.0, float(np.abs(x).max())):
        std = 0.0
    if not std > 0:
        return Summary(n, mean, std, math.nan, math.nan)
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def images_interval(accuracy: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of one model's accuracy on other images of the same kind.

    It knows nothing of other seeds.

    Args:
        accuracy: In percent.
        images: Number of evaluation images, at least 1.

    Returns:
        Its ends, in percent.
    """
    correct = round(accuracy / 100 * images)
    found = stats.binomtest(correct, images).proportion_ci(1 - ALPHA, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's step-down correction.

    Args:
        p_values: (m,) p-values of one family; NaN marks what was not tested and isn't counted.

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
    """On which images two methods disagree.

    Attributes:
        gained: Images that only the first is right about.
        lost: Images that only the second is right about.
        p: Exact two-sided p-value of McNemar's test: whether a disagreement is as likely to go one
            way as the other; NaN without any.
    """

    gained: int
    lost: int
    p: float


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Discordance:
    """McNemar's exact test of two models.

    It is about these trained models on other images, and knows nothing of other seeds.

    Args:
        one: (N,) which images the first is right about.
        other: (N,) likewise of the second.
    """
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    if gained + lost == 0:
        return Discordance(0, 0, math.nan)
    return Discordance(gained, lost, float(stats.binomtest(gained, gained + lost).pvalue))


def detectable(std: float, n: int, error: float | None = None, alpha: float = ALPHA) -> float:
    """The smallest true difference that one t test would show with 80 % power.

    Args:
        std: Standard deviation of the values: of the differences, in a paired test.
        n: Their number.
        error: Standard error of what is tested; left out, that of the values' mean.
        alpha: The test's level.

    Returns:
        The difference, in the unit of ``std``; NaN for fewer than two values or no spread.
    """
    if n < 2 or not std > 0:
        return math.nan
    return _noncentrality(n, alpha) * (std / math.sqrt(n) if error is None else error)


@lru_cache
def _noncentrality(n: int, alpha: float) -> float:
    """That of a two-sided t test of n values which has the power, in standard errors.

    Given the sample's standard deviation over the true one, W = sqrt(χ²/(n − 1)), t is normal: the
    power is a mean over W's quantiles. scipy's noncentral t fails at small levels.
    """
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    reach = critical * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))

    def missing_power(delta: float) -> float:
        shown = stats.norm.sf(reach - delta) + stats.norm.cdf(-reach - delta)
        return float(shown.mean()) - POWER

    return float(optimize.brentq(missing_power, 0.0, 3 * critical + 10))


def verdict(summary: Summary, p_holm: float) -> str:
    """Put a paired difference into words.

    Returns:
        ``holds``: the interval excludes 0, after correction too. ``suggestive``: it excludes 0,
        but not after correction. ``not shown``: it includes 0. ``identical``: 0 for every seed.
        ``no interval``: one seed, or no spread.
    """
    if math.isnan(summary.low):
        return "identical" if summary.n > 1 and abs(summary.mean) < 1e-12 else "no interval"
    if not summary.excludes_zero:
        return "not shown"
    return "holds" if p_holm < ALPHA else "suggestive"
