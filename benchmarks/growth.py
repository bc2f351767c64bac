"""Growth of costs with size."""

import math
from collections.abc import Sequence
from itertools import pairwise


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the steepest slope between neighbouring sizes, both on logarithmic scales.

    1 is linear growth. Fixed costs flatten the slope between small sizes, hence the steepest.
    """
    points = list(zip(map(math.log, sizes), map(math.log, costs), strict=True))
    return max((d - b) / (c - a) for (a, b), (c, d) in pairwise(points))
