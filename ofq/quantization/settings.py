"""How a model was quantized: the arguments of :func:`ofq.quantize`, which the model keeps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ofq.errors import UserError
from ofq.values import checked_name, parse_bits

_ATTRIBUTE = "ofq_settings"
_OLDER = {"ends": "first_last"}


@dataclass(frozen=True)
class Settings:
    """Arguments of :func:`ofq.quantize` beside the model, which describes them all."""

    weight_bits: int = 2
    activation_bits: int = 2
    weight_quantizer: str = "statsq"
    qkr: bool | str = False
    options: Mapping[str, float | str] = field(default_factory=dict)
    activation_quantizer: str = "lsq"
    activation_options: Mapping[str, float] = field(default_factory=dict)
    first_last_bits: tuple[int, int] = (8, 8)
    layer_bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def bits(self) -> str:
        """Bits of block weights and activations: ``W2A4``."""
        return _bits((self.weight_bits, self.activation_bits))

    def plain(self) -> dict[str, Any]:
        """Return the settings as config files and packed files have them, for JSON."""
        return {
            "weight_quantizer": self.weight_quantizer,
            "options": dict(self.options),
            "activation_quantizer": self.activation_quantizer,
            "activation_options": dict(self.activation_options),
            "qkr": self.qkr,
            "first_last": _bits(self.first_last_bits),
            "layers": {pattern: _bits(bits) for pattern, bits in self.layer_bits.items()},
            "bits": self.bits,
        }

    @classmethod
    def from_plain(cls, data: Any) -> "Settings":
        """Read what :meth:`plain` returns, from a file that anyone may have written.

        ``module``, which files may have too, is ignored: nothing that a file names is imported.

        Raises:
            ValueError: A key is missing or unknown, or a value isn't allowed; the message names it.
        """
        if not isinstance(data, dict):
            raise ValueError("quantization: expected a mapping")
        given: dict[str, Any] = {
            str(_OLDER.get(key, key)): value for key, value in data.items() if key != "module"
        }
        if unknown := sorted(given.keys() - _READERS.keys()):
            raise ValueError(f"quantization: unknown key '{unknown[0]}'")
        if missing := [key for key in ("bits", "weight_quantizer") if key not in given]:
            raise ValueError(f"quantization: key '{missing[0]}' is missing")
        values: dict[str, Any] = {}
        for key, value in given.items():
            try:
                values[_NAMES.get(key, key)] = _READERS[key](value)
            except (ValueError, TypeError) as error:
                raise ValueError(f"quantization: {key}: {error}") from None
        values["weight_bits"], values["activation_bits"] = values.pop("bits")
        return cls(**values)


def _bits(pair: tuple[int, int]) -> str:
    return f"W{pair[0]}A{pair[1]}"


def _name(value: Any) -> str:
    return checked_name(_text(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"given {value!r:.200}; allowed: a text")
    return value


def _pair(value: Any) -> tuple[int, int]:
    return parse_bits(_text(value))


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(f"given {value!r:.200}; allowed: a finite number")
    return value


def _option(value: Any) -> float | str:
    return value if isinstance(value, str) else _number(value)


def _qkr(value: Any) -> bool | str:
    if not isinstance(value, bool) and value != "lowrank":
        raise ValueError(f"given {value!r:.200}; allowed: false, true, lowrank")
    return value


def _mapping(read: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def read_all(data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise ValueError("expected a mapping")
        return {_text(key): read(value) for key, value in data.items()}

    return read_all


_READERS: dict[str, Callable[[Any], Any]] = {
    "weight_quantizer": _name,
    "options": _mapping(_option),
    "activation_quantizer": _name,
    "activation_options": _mapping(_number),
    "qkr": _qkr,
    "first_last": _pair,
    "layers": _mapping(_pair),
    "bits": _pair,
}
_NAMES = {"first_last": "first_last_bits", "layers": "layer_bits"}


def keep_settings(model: nn.Module, settings: Settings | None) -> None:
    """Let a model and its copies say how it was quantized; None for one that no longer is."""
    setattr(model, _ATTRIBUTE, settings)


def settings_of(model: nn.Module) -> Settings:
    """Return how a model was quantized.

    Raises:
        UserError: It wasn't by :func:`ofq.quantize`, or it holds packed weights.
    """
    settings = getattr(model, _ATTRIBUTE, None)
    if not isinstance(settings, Settings):
        raise UserError(
            f"the {type(model).__name__} doesn't say how it is quantized; allowed: the model that "
            "ofq.quantize returned, or a copy of it, but none that ofq.load_packed returned"
        )
    return settings
