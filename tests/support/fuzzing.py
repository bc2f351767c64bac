"""Sets how many examples a fuzz test tries: in CI few, by `make fuzz` many."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

_LONG = bool(os.environ.get("OFQ_FUZZ"))


def fuzzed(*, ci: int, long: int) -> Callable[[Any], Any]:
    """Set the number of examples of a property test.

    Args:
        ci: Examples in CI; all fuzz tests together take at most 60 seconds there.
        long: Examples with ``OFQ_FUZZ`` set, as by ``make fuzz``, which takes about ten minutes.
    """
    return settings(
        max_examples=long if _LONG else ci,
        derandomize=not _LONG,
        deadline=None,
        database=None,
        # examples make and remove their own folders, so function-scoped fixtures are safe
        suppress_health_check=list(HealthCheck),
    )
