"""The numbers that a report compares: what they are called, and how they are printed."""

import math
from dataclasses import dataclass

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
    """

    key: str
    name: str
    heading: str
    unit: str
    spec: str
    best: int

    def text(self, value: float) -> str:
        """A value as printed; an en dash where there is none."""
        return "–" if math.isnan(value) else format(value, self.spec).replace("-", MINUS)

    def signed(self, value: float) -> str:
        """A difference with its sign, unless it rounds to zero."""
        if math.isnan(value):
            return "–"
        text = format(value, f"+{self.spec}")
        return (text if float(text) else text[1:]).replace("-", MINUS)

    def interval(self, low: float, high: float) -> str:
        """An interval in brackets; empty where there is none."""
        return "" if math.isnan(low) else f"[{self.signed(low)},{SPACE}{self.signed(high)}]"


def p_text(p: float) -> str:
    """A p-value as printed; an en dash where there is none."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


TOP1 = Measure("top1", "top-1", "top-1 (%)", POINTS, ".2f", 1)
LOSS = Measure("loss", "loss", "loss", "", ".3g", -1)
OSCILLATION_MID = Measure(
    "oscillation_rate_mid",
    "oscillation rate mid-run",
    "osc. mid-run (%)",
    f"{SPACE}points",
    ".2f",
    0,
)
OSCILLATION_END = Measure(
    "oscillation_rate_end",
    "oscillation rate at the end",
    "osc. end (%)",
    f"{SPACE}points",
    ".2f",
    0,
)

SIZE = Measure("megabytes", "size", "size (MB)", f"{SPACE}MB", ".3g", -1)
"""Of a model's file; nothing that methods are compared by, as it has no spread."""


def measures(primary: str) -> tuple[Measure, Measure, Measure]:
    """The measures of a study by its primary number, that one first."""
    return (TOP1 if primary == "top1" else LOSS, OSCILLATION_MID, OSCILLATION_END)
