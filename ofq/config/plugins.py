"""Names that installed packages register by entry points, known without importing them.

A package declares each name with the module that registers it::

    [project.entry-points."ofq.plugins"]
    halved = "my_package.quantizers"

A config file may then use the name without naming the module.
"""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points

GROUP = "ofq.plugins"


@cache
def _modules() -> dict[str, str]:
    return {point.name: point.module for point in entry_points(group=GROUP)}


def module_of(names: Iterable[str]) -> str | None:
    """Return the module of the first name that an installed package declares; None for no name."""
    return next((_modules()[name] for name in names if name in _modules()), None)
