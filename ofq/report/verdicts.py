"""The verdict on each number that someone else reported too; the rule stands here and nowhere else.

Measured are n trainings with different seeds; reported is a mean of m trainings, of which only the
mean is known. If both are alike, the difference of the means has the standard error
s·√(1/n + 1/m), with the seeds' sample standard deviation s, and Student's t has n − 1 degrees of
freedom: for one reported run that is the prediction interval of one more seed. With one seed of our
own, or no spread, the evaluation set's binomial error takes the place of s, and says so.

The first that applies:

=================  ===============================================================================
``not run``        no seed has finished
``reproduced``     the 95 % interval of the difference lies within ±0.5 points
``off``            the difference exceeds 0.5 points, and its p-value is below 5 % after Holm's
                   correction over all numbers of the study that are reported
``within noise``   a true difference of one point would have been shown with 80 % power, and wasn't
``underpowered``   more seeds are needed to say anything
=================  ===============================================================================
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ofq.report.statistics import ALPHA, POWER, detectable

MARGIN = 0.5
"""Points within which a number counts as reproduced."""

RESOLUTION = 1.0
"""Points of true difference that a study must be able to show, lest it is underpowered."""


@dataclass(frozen=True)
class Distance:
    """How far measured values are from a reported one.

    Attributes:
        n: Number of measured values (seeds).
        difference: Their mean less the reported value.
        low, high: 95 % interval of the difference; NaN where no error is known.
        p: Two-sided p-value of there being none; NaN likewise.
        detectable: The smallest true difference that would be shown with 80 % power; NaN likewise.
        by_images: Whether the error is that of the evaluation set alone, for want of seeds.
    """

    n: int
    difference: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    detectable: float = math.nan
    by_images: bool = False


def distance(values: ArrayLike, reported: float, runs: int = 1, images: int = 0) -> Distance:
    """Hold measured accuracies against a reported one.

    Args:
        values: (n,) accuracies in percent, one per seed, n ≥ 1.
        reported: The reported accuracy, in percent.
        runs: Over how many trainings that one is a mean.
        images: Number of evaluation images; 0 if unknown.
    """
    x = np.asarray(values, dtype=np.float64)
    n, difference = len(x), float(x.mean()) - reported
    spread = float(x.std(ddof=1)) if n > 1 else 0.0
    share = math.sqrt(1 / n + 1 / runs)
    if spread > 1e-12 * max(1.0, float(np.abs(x).max())):
        error = spread * share
        half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * error
        p = float(2 * stats.t.sf(abs(difference) / error, n - 1))
        shown = detectable(spread, n, error)
        return Distance(n, difference, difference - half, difference + half, p, shown)
    rate = float(x.mean()) / 100
    error = 100 * math.sqrt(rate * (1 - rate) / images) * share if images else 0.0
    if error == 0:
        return Distance(n, difference)
    half = float(stats.norm.ppf(1 - ALPHA / 2)) * error
    p = float(2 * stats.norm.sf(abs(difference) / error))
    shown = half + float(stats.norm.ppf(POWER)) * error
    return Distance(n, difference, difference - half, difference + half, p, shown, by_images=True)


def judge(found: Distance, p_holm: float) -> str:
    """The verdict on a number that was measured.

    Args:
        found: How far it is from the reported one.
        p_holm: Its p-value after Holm's correction; NaN if it has none.

    Returns:
        ``reproduced``, ``off``, ``within noise`` or ``underpowered``, by this module's rule.
    """
    if found.low >= -MARGIN and found.high <= MARGIN:
        return "reproduced"
    if p_holm < ALPHA and abs(found.difference) > MARGIN:
        return "off"
    return "within noise" if found.detectable <= RESOLUTION else "underpowered"
