"""Description of the model in a packed file: what its metadata say, as JSON."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ofq.console import printable
from ofq.errors import UserError
from ofq.quantization.activations import activation_quantizers
from ofq.quantization.quantizers.base import weight_quantizers
from ofq.quantization.settings import Settings
from ofq.values import checked_arguments, checked_name, read_json

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_SHOWN = 200  # characters of a wrong value

Argument = bool | int | float | str


@dataclass(frozen=True)
class Form:
    """Description of a packed weight, in addition to its tensors.

    Attributes:
        layer: Name of the layer whose ``weight`` it is.
        quantizer: Registered name of its quantizer.
        bits: Bits per code.
        shape: Shape of the weight.
    """

    layer: str
    quantizer: str
    bits: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """Metadata of a packed file, in format 1.

    Attributes:
        model: Name of the full-precision model.
        classes: Number of its classes; 0 for a model without a head.
        settings: How it is quantized.
        weights: The packed weights.
        model_args: Further arguments of its constructor.
        modules: Modules outside this package by the names of quantizers that they register. They
            are named in errors; loading a file imports nothing.
    """

    model: str
    classes: int
    settings: Settings
    weights: tuple[Form, ...]
    model_args: Mapping[str, Argument] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> str:
        """Return the contents as JSON, as files have it.

        Raises:
            UserError: They hold what no file may, such as an option that is no number or text.
        """
        data = {
            "format": 1,
            "model": self.model,
            "classes": self.classes,
            "model_args": dict(self.model_args),
            "quantization": self.settings.plain(),
            "weights": [vars(form) for form in self.weights],
            **({"modules": dict(self.modules)} if self.modules else {}),
        }
        try:
            text = json.dumps(data, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise UserError(f"can't pack the model: {printable(error)}") from None
        read_contents(text, "can't pack the model")
        return text

    def check_quantizers(self) -> None:
        """Refuse a file whose quantizers aren't registered, rather than import what it names.

        Raises:
            UserError: One isn't registered; the message names its module, where the file does.
        """
        for kind, name, known in (
            ("weight", self.settings.weight_quantizer, weight_quantizers),
            ("activation", self.settings.activation_quantizer, activation_quantizers),
        ):
            if name not in known:
                module = self.modules.get(name)
                named = f" ('{module}', the file says)" if module else ""
                raise UserError(
                    f"{kind} quantizer '{name}' isn't registered: import the module that registers "
                    f"it{named} before load_packed, which imports nothing that a file names"
                )


def own_modules(settings: Settings) -> dict[str, str]:
    """Return the modules outside this package that register a model's quantizers, by their names.

    A quantizer of a script, whose module can't be imported elsewhere, is left out.
    """
    parts = {
        settings.weight_quantizer: weight_quantizers.get(settings.weight_quantizer),
        settings.activation_quantizer: activation_quantizers.get(settings.activation_quantizer),
    }
    modules = {name: getattr(part, "__module__", "") for name, part in parts.items()}
    return {
        name: module
        for name, module in modules.items()
        if _MODULE.fullmatch(module) and module.partition(".")[0] not in ("ofq", "__main__")
    }


def read_contents(text: str, source: str) -> Contents:
    """Read the metadata of a file, whoever wrote it.

    Args:
        text: The JSON.
        source: Its origin, for the error.

    Raises:
        UserError: They aren't those of a packed file; one line, which names the key.
    """
    data = read_json(text, source)
    try:
        return _contents(data)
    except ValueError as error:
        raise UserError(f"{source}: {printable(error)}") from None


def _contents(data: Any) -> Contents:
    needed = {"model", "classes", "quantization", "weights"}
    _check_keys("the file", data, needed, {"format", "model_args", "modules"})
    if _integer("format", data.get("format", 1)) != 1:
        raise ValueError(f"format is {data['format']}; allowed: 1")
    modules = {_text("modules", k): v for k, v in _mapping("modules", data).items()}
    settings = Settings.from_plain(data["quantization"])
    if (older := data["quantization"].get("module")) is not None:  # before there was `modules`
        modules |= dict.fromkeys((settings.weight_quantizer, settings.activation_quantizer), older)
    if wrong := [module for module in modules.values() if not _is_module(module)]:
        raise ValueError(f"modules: given {_shown(wrong[0])}; allowed: a module's dotted name")
    forms = data["weights"]
    if not isinstance(forms, list):
        raise ValueError("weights: expected a list")
    try:
        model = checked_name(_text("model", data["model"]))
    except ValueError as error:
        raise ValueError(f"model is {_shown(data['model'])}: {error}") from None
    return Contents(
        model=model,
        classes=_integer("classes", data["classes"], lowest=0),
        settings=settings,
        weights=tuple(_form(form) for form in forms),
        model_args=_arguments(_mapping("model_args", data)),
        modules=modules,
    )


def _form(data: Any) -> Form:
    _check_keys("a weight", data, {"layer", "quantizer", "bits", "shape"}, set())
    if not isinstance(data["shape"], list):
        raise ValueError("weights: shape: expected a list")
    return Form(
        layer=_text("weights: layer", data["layer"]),
        quantizer=_text("weights: quantizer", data["quantizer"]),
        bits=_integer("weights: bits", data["bits"]),
        shape=tuple(_integer("weights: shape", length) for length in data["shape"]),
    )


def _arguments(values: dict[str, Any]) -> dict[str, Argument]:
    for name, value in values.items():
        checked_name(name)
        if not isinstance(value, Argument):
            raise ValueError(
                f"model_args: '{name}' is {_shown(value)}; allowed: a number, a text, true or false"
            )
    return checked_arguments(values)


def _check_keys(what: str, data: Any, needed: set[str], others: set[str]) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected a mapping")
    if missing := sorted(needed - data.keys()):
        raise ValueError(f"{what}: key '{missing[0]}' is missing")
    if unknown := sorted(data.keys() - needed - others):
        raise ValueError(f"{what}: unknown key {_shown(unknown[0])}")


def _mapping(key: str, data: dict[str, Any]) -> dict[str, Any]:
    values = data.get(key, {})
    if not isinstance(values, dict):
        raise ValueError(f"{key}: expected a mapping")
    return values


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is {_shown(value)}; allowed: a text")
    return value


def _integer(key: str, value: Any, lowest: int | None = None) -> int:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or (lowest is not None and value < lowest):
        least = "" if lowest is None else f", {lowest} or more"
        raise ValueError(f"{key} is {_shown(value)}; allowed: an integer{least}")
    return int(value)


def _is_module(value: Any) -> bool:
    return isinstance(value, str) and _MODULE.fullmatch(value) is not None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
