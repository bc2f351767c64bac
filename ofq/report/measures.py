"""Measures that a report compares: their names and how they are printed."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ofq.report.statistics import Summary, detectable, summarize

MINUS = "−"
SPACE = "\N{NO-BREAK SPACE}"
POINTS = f"{SPACE}points"


@dataclass(frozen=True)
class Measure:
    """Column of ``runs.csv`` that tables show and by which methods are compared.

    Attributes:
        key: The column.
        name: Its name on the page.
        heading: Its column heading in the table.
        unit: Unit of a difference, after a non-breaking space.
        spec: Format of a value.
        best: 1 if more is better, −1 if less is, 0 if neither is.
        most: The largest possible value; the least is 0.
    """

    key: str
    name: str
    heading: str
    unit: str
    spec: str
    best: int
    most: float = math.inf

    def over_seeds(self, values: ArrayLike, resplit: float = 0.0) -> Summary:
        """Summarize values of (n,) seeds; the interval is clipped to possible values.

        Args:
            values: The values.
            resplit: As :func:`ofq.report.statistics.summarize` has it.
        """
        summary = summarize(values, resplit=resplit)
        low, high = np.clip([summary.low, summary.high], 0, self.most).tolist()
        return replace(summary, low=low, high=high)

    def possible(self, difference: Summary) -> Summary:
        """Return a difference of two values, its interval clipped to possible differences."""
        ends = np.clip([difference.low, difference.high], -self.most, self.most).tolist()
        return replace(difference, low=ends[0], high=ends[1])

    def detectable(self, difference: Summary, alpha: float) -> float:
        """Return the true difference that a test would show; NaN if none that is possible.

        Args:
            difference: The tested difference.
            alpha: The test's level.
        """
        found = detectable(difference.error, difference.df, alpha)
        return found if found <= self.most else math.nan

    def text(self, value: float) -> str:
        """Format a value; an en dash if there is none."""
        return "–" if math.isnan(value) else format(value, self.spec).replace("-", MINUS)

    def signed(self, value: float) -> str:
        """Format a difference with its sign, unless it rounds to zero."""
        text = self._with_sign(value)
        return text[1:] if not text.strip("+−0.") else text

    def interval(self, low: float, high: float) -> str:
        """Format an interval in brackets, always with signs; empty if there is none."""
        ends = f"{self._with_sign(low)},{SPACE}{self._with_sign(high)}"
        return "" if math.isnan(low) else f"[{ends}]"

    def _with_sign(self, value: float) -> str:
        return "–" if math.isnan(value) else format(value, f"+{self.spec}").replace("-", MINUS)


def p_text(p: float) -> str:
    """Format a p-value; an en dash if there is none."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


TOP1 = Measure("top1", "top-1", "top-1 (%)", POINTS, ".2f", 1, most=100)
LOSS = Measure("loss", "loss", "loss", "", ".3g", -1)
OSCILLATION_MID = Measure(
    "oscillation_rate_mid",
    "oscillation rate mid-run",
    "osc. mid-run (%)",
    f"{SPACE}points",
    ".2f",
    0,
    most=100,
)
OSCILLATION_END = Measure(
    "oscillation_rate_end",
    "oscillation rate at the end",
    "osc. end (%)",
    f"{SPACE}points",
    ".2f",
    0,
    most=100,
)

FLIPS_MID = Measure("flips_mid", "flips mid-run", "flips mid-run (‰)", "", ".2f", 0)
FLIPS_END = Measure("flips_end", "flips at the end", "flips end (‰)", "", ".2f", 0)
"""Flips per 1,000 weights and optimizer step; methods aren't tested by them."""

IN_RANGE_MID = Measure(
    "in_boundary_range_mid",
    "share in the boundary range mid-run",
    "in boundary range mid-run (%)",
    POINTS,
    ".2f",
    0,
    most=100,
)
IN_RANGE_END = Measure(
    "in_boundary_range_end",
    "share in the boundary range at the end",
    "in boundary range end (%)",
    POINTS,
    ".2f",
    0,
    most=100,
)
"""Weights in the boundary range of a rounding threshold; methods aren't tested by them."""

SIZE = Measure("megabytes", "size", "size (MB)", f"{SPACE}MB", ".3g", -1)
"""Size of a model's file; methods aren't compared by it, since it doesn't vary over seeds."""


def measures(primary: str) -> tuple[Measure, Measure, Measure]:
    """Return the measures of a study, the primary one first."""
    return (TOP1 if primary == "top1" else LOSS, OSCILLATION_MID, OSCILLATION_END)
