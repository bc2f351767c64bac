"""Cost of methods: the time of their QAT steps over that of LSQ's, on the same hardware.

Methods of one model, bits, batch and precision take equally many steps in an epoch, so that the
ratio of their epochs' times is that of their steps'. Runs often train beside others, which slows
some of them: the median over a method's runs stands for it, and the quartiles tell how well.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal

from ofq.monitor.estimate import Sample
from ofq.monitor.kind import Kind

REFERENCE = "lsq"
"""Techniques of the runs over whose step time others' is told."""


@dataclass(frozen=True)
class Cost:
    """Cost of QAT runs of one kind.

    Attributes:
        ratio: Their median seconds per epoch over those of :data:`REFERENCE`.
        low, high: Quartiles of their seconds per epoch over the median of :data:`REFERENCE`; both
            are ``ratio`` of a single sample.
        seconds: Their median seconds per epoch, its evaluation included.
        count: Number of the samples that it is a median of.
        device: The hardware's name.
        source: Origin of all samples on both sides.
    """

    ratio: float
    low: float
    high: float
    seconds: float
    count: int
    device: str
    source: Literal["run", "calibration"]


def costs(samples: Iterable[Sample]) -> dict[Kind, Cost]:
    """Return the cost of each kind of QAT run of which, as of its reference, there are samples.

    Only samples of one device and one source are compared. Where a kind has several such costs,
    finished runs count before calibrations, then that of the most samples.
    """
    times: dict[tuple[Kind, str, Literal["run", "calibration"]], list[float]] = {}
    for sample in samples:
        if sample.kind.stage == "qat":
            middle = (sample.epoch.low + sample.epoch.high) / 2
            times.setdefault((sample.kind, sample.device, sample.source), []).append(middle)
    found: dict[Kind, Cost] = {}
    for (kind, device, source), mine in sorted(times.items(), key=_first_best):
        reference = times.get((reference_of(kind), device, source))
        if reference is not None and kind not in found:
            low, seconds, high = _quartiles(mine)
            unit = median(reference)
            ratios = seconds / unit, low / unit, high / unit
            found[kind] = Cost(*ratios, seconds, len(mine), device, source)
    return found


def reference_of(kind: Kind) -> Kind:
    """Return the kind of the runs over whose step time that of a kind is told."""
    return kind.model_copy(update={"method": REFERENCE})


def cost_text(ratio: float, low: float, high: float) -> str:
    """Format a cost with its quartiles, which are left out where they read like it.

    >>> cost_text(1.204, 1.1, 1.3), cost_text(1, 1, 1)
    ('1.20 (1.10-1.30)', '1.00')
    """
    shown, least, most = (f"{value:.2f}" for value in (ratio, low, high))
    return shown if shown == least == most else f"{shown} ({least}-{most})"


def _quartiles(times: list[float]) -> tuple[float, float, float]:
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return low, middle, high


def _first_best(item: tuple[tuple[Kind, str, str], list[float]]) -> tuple[bool, int, str]:
    (_, device, source), times = item
    return source != "run", -len(times), device
