"""How a cost grows with the size of what it is paid for."""

import math
from collections.abc import Sequence
from itertools import pairwise


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The steepest slope between neighbouring sizes, both on logarithmic scales.

    1 is linear growth. Between small sizes what is paid but once flattens it, hence the steepest.
    """
    points = list(zip(map(math.log, sizes), map(math.log, costs), strict=True))
    return max((d - b) / (c - a) for (a, b), (c, d) in pairwise(points))
