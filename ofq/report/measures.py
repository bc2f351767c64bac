"""The numbers that a report compares: what they are called, and how they are printed."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ofq.report.statistics import Summary, summarize

MINUS = "−"
SPACE = "\N{NO-BREAK SPACE}"
POINTS = f"{SPACE}points"


@dataclass(frozen=True)
class Measure:
    """One column of ``runs.csv`` that tables show and that methods are compared by.

    Attributes:
        key: The column.
        name: What the page calls it.
        heading: Its column heading in the table.
        unit: Unit of a difference, after a space that keeps it on the line.
        spec: Format of a value.
        best: 1 if more is better, −1 if less is, 0 if neither is best by itself.
        most: The largest possible value; the least is 0.
    """

    key: str
    name: str
    heading: str
    unit: str
    spec: str
    best: int
    most: float = math.inf

    def over_seeds(self, values: ArrayLike) -> Summary:
        """Values of (n,) seeds, summarized; the interval ends where no value is possible."""
        found = summarize(values)
        low, high = np.clip([found.low, found.high], 0, self.most).tolist()
        return replace(found, low=low, high=high)

    def text(self, value: float) -> str:
        """A value as printed; an en dash where there is none."""
        return "–" if math.isnan(value) else format(value, self.spec).replace("-", MINUS)

    def signed(self, value: float) -> str:
        """A difference with its sign, unless it rounds to zero."""
        text = self._with_sign(value)
        return text[1:] if not text.strip("+−0.") else text

    def interval(self, low: float, high: float) -> str:
        """An interval in brackets, signs at ends that round to zero too; empty if there is none."""
        ends = f"{self._with_sign(low)},{SPACE}{self._with_sign(high)}"
        return "" if math.isnan(low) else f"[{ends}]"

    def reach(self, difference: float) -> str:
        """A detectable difference as printed, of which there may be none that is possible."""
        return f"> {self.most:g}" if difference > self.most else self.text(difference)

    def _with_sign(self, value: float) -> str:
        return "–" if math.isnan(value) else format(value, f"+{self.spec}").replace("-", MINUS)


def p_text(p: float) -> str:
    """A p-value as printed; an en dash where there is none."""
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

SIZE = Measure("megabytes", "size", "size (MB)", f"{SPACE}MB", ".3g", -1)
"""Of a model's file; nothing that methods are compared by, as it has no spread."""


def measures(primary: str) -> tuple[Measure, Measure, Measure]:
    """The measures of a study by its primary number, that one first."""
    return (TOP1 if primary == "top1" else LOSS, OSCILLATION_MID, OSCILLATION_END)
