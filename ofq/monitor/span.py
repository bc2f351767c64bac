"""Ranges of numbers, and their formatting."""

from collections.abc import Iterable
from dataclasses import dataclass

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Range:
    """Range that a number lies in.

    Attributes:
        low, high: Its bounds.
    """

    low: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> "Range":
        return Range(self.low * factor, self.high * factor)

    def widened(self, factor: float) -> "Range":
        """Return the range with its lower bound divided, its upper one multiplied by a factor."""
        return Range(self.low / factor, self.high * factor)


def total(ranges: Iterable[Range]) -> Range:
    """Return the sum of ranges: lower bounds with lower, upper with upper."""
    return sum(ranges, Range(0, 0))


def hull(ranges: Iterable[Range]) -> Range:
    """Return the smallest range that holds all of the given ones, at least one."""
    ranges = list(ranges)
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))


def duration(seconds: Range) -> str:
    """Format a time in a readable unit.

    >>> duration(Range(12, 31)), duration(Range(4000, 9000)), duration(Range(0, 600))
    ('12-31 s', '1.1-2.5 h', '0-10 min')
    """
    for unit, size in (("s", 1), ("min", _MINUTE), ("h", _HOUR)):
        if seconds.high < 2 * {1: _MINUTE, _MINUTE: _HOUR, _HOUR: _DAY}[size]:
            return f"{figures(seconds * (1 / size))} {unit}"
    return f"{figures(seconds * (1 / _DAY))} days"


def figures(values: Range) -> str:
    """Format a range's bounds; one number if both read the same.

    >>> figures(Range(0.04, 0.5)), figures(Range(9.96, 120)), figures(Range(3, 3))
    ('0.04-0.5', '10-120', '3')
    """
    low, high = _figure(values.low), _figure(values.high)
    return low if low == high else f"{low}-{high}"


def _figure(value: float) -> str:
    if round(value, 1) >= 10:
        return f"{value:.0f}"
    digits = 1 if round(value, 2) >= 1 else 2
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"
