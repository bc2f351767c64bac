"""Names that installed packages register by entry points, known without importing them.

A package declares each name with the module that registers it::

    [project.entry-points."ofq.plugins"]
    halved = "my_package.quantizers"

A config file may then use the name without naming the module.
"""

from collections.abc import Container, Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

GROUP = "ofq.plugins"


@cache
def _modules() -> dict[str, str]:
    return {point.name: point.module for point in entry_points(group=GROUP)}


def with_module(
    content: dict[str, Any], names: Iterable[object], built_in: Container[str]
) -> dict[str, Any]:
    """Return the content of a config file, with the module of its first plugin.

    Args:
        content: The content, returned as it is if it has a ``module`` already, or no plugin.
        names: The names of parts in it, not checked yet.
        built_in: Names that need no plugin.
    """
    if content.get("module") is not None:
        return content
    own = (name for name in names if isinstance(name, str) and name not in built_in)
    module = next((_modules()[name] for name in own if name in _modules()), None)
    return content if module is None else {**content, "module": module}
