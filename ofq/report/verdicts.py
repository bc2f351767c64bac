"""Verdicts on results that others reported too; the only definition of the rule.

Our result is from n trainings with different seeds; the reported one is a mean of m trainings, of
which only the mean is known. If both are alike, the difference of the means has the standard error
s·√(1/n + 1/m), with the seeds' sample standard deviation s, and Student's t has n − 1 degrees of
freedom: for one reported run that is the prediction interval of one more seed.

With one seed of our own, or equal results, the interval is Wilson's, over the evaluation images. It
leaves out the seeds' variation, for which the margin stands in: the test is whether the difference
exceeds the margin, and ``within noise`` is measured from there, too. An evaluation of given weights
has no error at all, and is not tested: its difference exceeds the margin or doesn't.

The first that applies:

=================  ===============================================================================
``not run``        no seed has finished
``reproduced``     the 95 % interval of the difference lies within ±0.5 points
``off``            the difference exceeds 0.5 points, and its p-value is below 5 % after Holm's
                   correction over all trained numbers of the study that are reported
``within noise``   the interval includes 0, and a true difference of one point would have been
                   shown with 80 % power, the strictest step of the correction included
``underpowered``   seeds, ours or the reported ones, are too few to decide between these
=================  ===============================================================================
"""

import math
from dataclasses import dataclass

from numpy.typing import ArrayLike
from scipy import stats

from ofq.report.statistics import (
    ALPHA,
    POWER,
    Summary,
    detectable,
    images_interval,
    summarize,
)

MARGIN = 0.5
"""Percentage points within which a result counts as reproduced."""

RESOLUTION = 1.0
"""True difference in points that a study must be able to show, else it is underpowered."""


@dataclass(frozen=True)
class Distance:
    """Distance of measured values from a reported one.

    Attributes:
        n: Number of measured values (seeds).
        difference: Their mean minus the reported value.
        low, high: 95 % interval of the difference; NaN where no error is known.
        p: Two-sided p-value of no difference; of a difference within the margin, if ``by_images``;
            NaN where no error is known, or there is none.
        detectable: The smallest true difference that would be shown with 80 % power; NaN where no
            error is known.
        by_images: Whether the error is that of the evaluation set alone, for lack of seeds.
    """

    n: int
    difference: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    detectable: float = math.nan
    by_images: bool = False

    @property
    def exact(self) -> bool:
        """Return whether it has no error."""
        return self.low == self.high


def distance(
    values: ArrayLike, reported: float, runs: int = 1, images: int = 0, family: int = 1
) -> Distance:
    """Compare trained models' accuracies with a reported one.

    Args:
        values: (n,) accuracies in percent, one per seed, n ≥ 1.
        reported: The reported accuracy, in percent.
        runs: Number of trainings of which the reported accuracy is the mean.
        images: Number of evaluation images; 0 if unknown.
        family: Number of the study's trained results that are reported.
    """
    ours = summarize(values)
    if not math.isnan(ours.low):
        return _by_seeds(ours, reported, runs, ALPHA / family)
    if images:
        return _by_images(ours.n, ours.mean, reported, images, ALPHA / family)
    return Distance(ours.n, ours.mean - reported)


def _by_seeds(ours: Summary, reported: float, runs: int, strictest: float) -> Distance:
    n, difference = ours.n, ours.mean - reported
    error = ours.std * math.sqrt(1 / n + 1 / runs)
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, n - 1))
    shown = detectable(ours.std, n, error, strictest)
    return Distance(n, difference, difference - half, difference + half, p, shown)


def _by_images(n: int, mean: float, reported: float, images: int, strictest: float) -> Distance:
    difference = mean - reported
    low, high = images_interval(mean, images)
    beyond = abs(difference) > MARGIN
    edge = (reported + math.copysign(MARGIN, difference)) / 100
    p = stats.binomtest(round(mean / 100 * images), images, edge).pvalue if beyond else 1.0
    error = 100 * math.sqrt(reported / 100 * (1 - reported / 100) / images)
    quantiles = stats.norm.ppf([1 - strictest / 2, POWER])
    shown = MARGIN + float(quantiles.sum()) * error
    return Distance(n, difference, low - reported, high - reported, float(p), shown, by_images=True)


def exactly(value: float, reported: float) -> Distance:
    """Compare an evaluation of given weights with a reported one, both accuracies in percent."""
    difference = value - reported
    return Distance(1, difference, difference, difference, detectable=0.0)


def judge(found: Distance, p_holm: float) -> str:
    """Return the verdict on a measured result.

    Args:
        found: Its distance from the reported one.
        p_holm: Its p-value after Holm's correction; NaN if it has none.

    Returns:
        ``reproduced``, ``off``, ``within noise`` or ``underpowered``, by this module's rule.
    """
    if found.low >= -MARGIN and found.high <= MARGIN:
        return "reproduced"
    if (found.exact or p_holm < ALPHA) and abs(found.difference) > MARGIN:
        return "off"
    allowed = MARGIN if found.by_images else 0.0
    possible = found.low - allowed <= 0 <= found.high + allowed
    clear = possible and found.detectable <= RESOLUTION + allowed
    return "within noise" if clear else "underpowered"
