"""Registration of parts, built in or a user's own, under the names that config files give them."""

from typing import Any

from ofq.errors import UserError


def register(registry: dict[str, Any], name: str, part: object, kind: str) -> None:
    """Add a part to a registry; it replaces an earlier version of itself.

    Args:
        registry: The parts of this kind by name.
        name: The name to register the part under.
        part: A class or function.
        kind: What the part is, with an article, for the message.

    Raises:
        UserError: Another part has the name.
    """
    if name in registry and _home(registry[name]) != _home(part):
        raise UserError(f"{kind} named '{name}' is already registered")
    registry[name] = part


def _home(part: object) -> tuple[object, object]:
    """Return module and name, which stay the same if a notebook cell is run again."""
    return getattr(part, "__module__", part), getattr(part, "__qualname__", part)
