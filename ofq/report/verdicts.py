"""Verdicts on results that others reported too.

Our result is from n trainings with different seeds; the reported one is a mean of m trainings. If
both are alike, the difference of the means has the standard error s·√(1/n + 1/m): for one reported
run that of the prediction of one more seed. s² is the seeds' variance, pooled over the study's
trained cells and moderated (:mod:`ofq.report.pooling`); Student's t has its degrees of freedom.
Where the reported runs' own standard deviation r is known, s²/m is r²/m, with degrees of freedom by
Welch and Satterthwaite. Where seeds re-split one set of images, 1/n is 1/n + n_test/n_train.

Where nothing is known of the seeds' variance, as in a study of one seed or of equal results, the
interval is Wilson's, over the evaluation images. It leaves out the seeds' variation, for which the
margin stands in: the test is whether the difference exceeds the margin, and ``within noise`` is
measured from there, too. An evaluation of given weights has no error at all, and is not tested: its
difference exceeds the margin or doesn't.

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

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ofq.report.pooling import Variance
from ofq.report.statistics import ALPHA, POWER, detectable, images_interval, student

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
        df: Degrees of freedom of an error over seeds, else NaN.
    """

    n: int
    difference: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    detectable: float = math.nan
    by_images: bool = False
    df: float = math.nan

    @property
    def exact(self) -> bool:
        """Return whether it has no error."""
        return self.low == self.high


@dataclass(frozen=True)
class Reported:
    """Reported accuracy, or difference of two.

    Attributes:
        value: The accuracy in percent, or the difference in points.
        runs: Number of trainings of which it is the mean.
        std: Their sample standard deviation in points; None where it isn't known.
        is_difference: Whether it is a difference.
    """

    value: float
    runs: int = 1
    std: float | None = None
    is_difference: bool = False

    def variance(self, ours: Variance) -> Variance:
        """Return the variance of one of its trainings; ours, where its own isn't known."""
        return ours if self.std is None else Variance(self.std**2, self.runs - 1)

    def possible(self, low: float, high: float) -> tuple[float, float]:
        """Return an interval of differences from it, clipped to those of an accuracy."""
        least = -100 if self.is_difference else 0
        return max(low, least - self.value), min(high, 100 - self.value)


@dataclass(frozen=True)
class Spread:
    """What is known of the error of trained models' accuracies.

    Attributes:
        variance: Variance of one training over seeds.
        resplit: As :func:`ofq.report.statistics.summarize` has it.
        images: Number of evaluation images; 0 if unknown.
    """

    variance: Variance
    resplit: float = 0.0
    images: int = 0


def distance(values: ArrayLike, reported: Reported, spread: Spread, family: int = 1) -> Distance:
    """Compare trained models' accuracies with a reported one.

    Args:
        values: (n,) accuracies in percent, one per seed, n ≥ 1.
        reported: The reported accuracy.
        spread: Variance over seeds, and the evaluation set.
        family: Number of the study's trained results that are reported.
    """
    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if spread.variance.known:
        return _by_seeds(n, mean - reported.value, reported, spread, ALPHA / family)
    if spread.images:
        return _by_images(n, mean, reported, spread.images, ALPHA / family)
    return Distance(n, mean - reported.value)


def _by_seeds(
    n: int, difference: float, reported: Reported, spread: Spread, strictest: float
) -> Distance:
    ours, theirs = spread.variance, reported.variance(spread.variance)
    own = ours.value * (1 / n + spread.resplit)
    other = theirs.value / reported.runs
    error = math.sqrt(own + other)
    df = ours.df
    if reported.std is not None:
        df = (own + other) ** 2 / (own**2 / ours.df + other**2 / theirs.df)
    half, p = student(difference, error, df)
    low, high = reported.possible(difference - half, difference + half)
    shown = detectable(error, df, strictest)
    reach = shown if shown <= max(reported.value, 100 - reported.value) else math.nan
    return Distance(n, difference, low, high, p, reach, df=df)


def _by_images(n: int, mean: float, reported: Reported, images: int, strictest: float) -> Distance:
    known, difference = reported.value, mean - reported.value
    low, high = images_interval(mean, images)
    beyond = abs(difference) > MARGIN
    edge = (known + math.copysign(MARGIN, difference)) / 100
    p = stats.binomtest(round(mean / 100 * images), images, edge).pvalue if beyond else 1.0
    error = 100 * math.sqrt(known / 100 * (1 - known / 100) / images)
    quantiles = stats.norm.ppf([1 - strictest / 2, POWER])
    shown = MARGIN + float(quantiles.sum()) * error
    return Distance(n, difference, low - known, high - known, float(p), shown, by_images=True)


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
