"""Sweeps over options of methods: a study's key ``tune``, and the method that each value makes.

An option is addressed by its place in the method's file, with a technique by its form:
``techniques.dampening.strength``, ``options.delta``, ``cga.boundary_range``, ``scale_lr``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from ofq.config.files import parse, suggest
from ofq.config.method import Method
from ofq.errors import UserError

Value = bool | int | float | str
Tune = Mapping[str, Mapping[str, list[Value]]]
"""Values to try, by method and option."""

_FREE = ("options", "activation_options")  # any key; checked when the quantizer is made
_KEPT = frozenset({"label", "module", "tuned"})


@dataclass(frozen=True)
class Variant:
    """A method with some options at tried values.

    Attributes:
        base: The method's name.
        values: The tried value of each option.
    """

    base: str
    values: dict[str, Value]

    @property
    def name(self) -> str:
        """Name in the study, such as ``dampening[strength=0.001]``."""
        return f"{self.base}[{','.join(f'{_short(o)}={shown(v)}' for o, v in self._items)}]"

    def label(self, method: Method) -> str:
        """Return the label, such as ``Dampening, strength 0.001``."""
        words = [f"{_short(o).replace('_', ' ')} {shown(v)}" for o, v in self._items]
        return ", ".join([method.label, *words])

    @property
    def _items(self) -> list[tuple[str, Value]]:
        return list(self.values.items())

    def method(self, method: Method, source: str) -> Method:
        """Return the method with the tried values.

        Args:
            method: The method that is tuned.
            source: The study's file, for errors.

        Raises:
            UserError: It has no such option, or refuses the value.
        """
        data: Any = method.model_dump(exclude={"tuned"})
        for option, value in self.values.items():
            where = f"{source}: key 'tune.{self.base}': "
            if option not in (known := options_of(method)) and not _is_free(option):
                hint = suggest(option, sorted(known))
                raise UserError(f"{where}unknown option '{option}' ({hint})")
            *way, last = option.split(".")
            holder = data
            for part in way:
                holder = _step(holder, part)
            holder[last] = value
        tried = ", ".join(f"{option} {shown(value)}" for option, value in self._items)
        data["label"] = self.label(method)
        return parse(Method, data, f"{source}: key 'tune.{self.base}', {tried}")


def variants(tune: Tune) -> dict[str, list[Variant]]:
    """Return the variants of each tuned method: all combinations of its options' values."""
    return {
        base: [
            Variant(base, dict(zip(options, values, strict=True)))
            for values in product(*options.values())
        ]
        for base, options in tune.items()
    }


def base_of(name: str) -> str:
    """Return the method of a variant's name; a method's own name as it is."""
    return name.partition("[")[0]


def options_of(method: Method) -> list[str]:
    """Return the options of a method that have a value, by their addresses."""
    return list(_leaves(method.model_dump(exclude=set(_KEPT)), ""))


def shown(value: Value) -> str:
    """Format a tried value as names and tables have it."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _short(option: str) -> str:
    return option.rpartition(".")[2]


def _is_free(option: str) -> bool:
    holder, _, key = option.partition(".")
    return holder in _FREE and bool(key)


def _step(holder: Any, part: str) -> Any:
    if isinstance(holder, list | tuple):
        return next(each for each in holder if each["form"] == part)
    return holder[part]


def _leaves(data: Any, before: str) -> dict[str, Value]:
    """Return numbers and texts of nested data by their addresses, a technique's by its form."""
    if isinstance(data, dict):
        parts = {key: value for key, value in data.items() if key != "form"}
    elif isinstance(data, list | tuple):
        parts = {each["form"]: each for each in data}
    else:
        return {} if data is None else {before: data}
    found: dict[str, Value] = {}
    for key, value in parts.items():
        found |= _leaves(value, f"{before}.{key}" if before else str(key))
    return found
