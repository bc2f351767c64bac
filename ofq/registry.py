"""Registration of parts, built in or a user's own, under the names that config files give them."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from ofq.errors import UserError


@cache
def built_in_names(decorator: str, package: str) -> tuple[str, ...]:
    """Return the names of this package's own parts, in order, without importing them.

    The workflow checks config files, and must not load torch for it; so the names are read from
    the source files that register the parts.

    Args:
        decorator: The decorator that registers parts of a kind, such as ``register_figure``.
        package: The folder of this package in which they are defined, such as ``report/figures``.

    >>> "cga" in built_in_names("register_technique", "quantization/techniques")
    True
    """
    pattern = re.compile(rf'^@{decorator}\("(\w+)"\)$', re.MULTILINE)
    files = (Path(__file__).parent / package).rglob("*.py")
    return tuple(sorted(n for f in files for n in pattern.findall(f.read_text(encoding="utf-8"))))


Part = TypeVar("Part", bound=Callable[..., Any])
_Given = TypeVar("_Given", bound=Callable[..., Any])


class Registry(dict[str, Part]):
    """Parts of one kind, built in or a user's own, by the names that config files give them.

    Args:
        kind: What a part is, for messages: ``weight quantizer``.
        base: The class that a part derives from, if it is a class.
    """

    def __init__(self, kind: str, base: type | None = None) -> None:
        super().__init__()
        self.kind = kind
        self._base = base

    def register(self, name: str) -> Callable[[_Given], _Given]:
        """Return a decorator that adds a part; it replaces an earlier version of itself.

        Raises:
            UserError: Another part has the name, or a class doesn't derive from the base class.
        """

        def add(part: _Given) -> _Given:
            if self._base and isinstance(part, type) and not issubclass(part, self._base):
                raise UserError(f"{self.kind} '{name}': {part} is no ofq.{self._base.__name__}")
            if name in self and _home(self[name]) != _home(part):
                raise UserError(f"another {self.kind} is registered as '{name}'")
            self[name] = cast(Part, part)
            return part

        return add

    def check(self, name: str) -> None:
        """Refuse a name that isn't registered.

        Raises:
            UserError: The message lists those that are.
        """
        if name not in self:
            raise UserError(f"unknown {self.kind} '{name}'; allowed: {', '.join(sorted(self))}")

    def check_options(self, name: str, options: Mapping[str, Any], fixed: int) -> None:
        """Refuse options that a part doesn't take, or lack ones that it needs.

        Args:
            name: Its registered name.
            options: Its keyword arguments.
            fixed: Number of arguments that it gets before them.

        Raises:
            UserError: The name isn't registered, or an option is unknown or missing; the message
                lists those that are allowed.
        """
        self.check(name)
        try:
            parameters = [*inspect.signature(self[name]).parameters.values()]
        except ValueError:  # a callable without a signature
            return
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        named = [p for p in named if p not in parameters[:fixed]]
        names = [parameter.name for parameter in named]
        allowed = f"allowed: {', '.join(names) or 'none'}"
        for option in options:
            if option not in names:
                raise UserError(f"{self.kind} '{name}': unknown option '{option}'; {allowed}")
        for parameter in named:
            if parameter.default is parameter.empty and parameter.name not in options:
                raise UserError(
                    f"{self.kind} '{name}': option '{parameter.name}' is missing; {allowed}"
                )

    def make(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a registered part.

        Raises:
            UserError: The name isn't registered, or the part doesn't accept these arguments.
        """
        self.check(name)
        try:
            return self[name](*arguments, **options)
        except TypeError as error:
            raise UserError(f"{self.kind} '{name}': {error}") from None

    def name_of(self, instance: object) -> str:
        """Return the registered name of an object's class, or the class's own if it has none."""
        names = (name for name, part in self.items() if part is type(instance))
        return next(names, type(instance).__name__)


def _home(part: object) -> tuple[object, object]:
    """Return module and name, which stay the same if a notebook cell is run again."""
    return getattr(part, "__module__", part), getattr(part, "__qualname__", part)
