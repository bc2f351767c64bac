"""Values that several config models share: stages, bits, names and seeds."""

import re
import unicodedata
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

QuantizedStage = Literal["qat", "cga"]
TrainedStage = Literal["fp", "qat", "cga"]
Stage = Literal["fp", "qat", "cga", "noise", "released"]
State = Literal["waiting", "running", "interrupted", "failed", "done"]
"""State of a run, as its folder tells it."""

OFF = 32
"""Bit-width that stands for "not quantized"."""

_BITS = re.compile(r"W(\d+)A(\d+)")
_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_LINE_ENDS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
_FORMATTING = frozenset(
    "\t\n\r\u00ad\u200c\u200d"
)  # soft hyphens, joiners of Indic scripts and emoji
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def parse_bits(text: str) -> tuple[int, int]:
    """Split ``W2A4`` into weight bits 2 and activation bits 4 (each 2 to 8, or 32 = off).

    Raises:
        ValueError: Another form, or another bit-width.
    """
    match = _BITS.fullmatch(text)
    if match is None:
        raise ValueError("expected a form like W2A2: weight bits, then activation bits")
    weights, activations = (int(group) for group in match.groups())
    for bits in (weights, activations):
        if bits != OFF and not 2 <= bits <= 8:
            raise ValueError(f"{bits} bits; allowed: 2 to 8, or 32 = not quantized")
    return weights, activations


def _bits(text: str) -> str:
    parse_bits(text)
    return text


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError("allowed in a name: letters, digits, '_', '-', '.', '+'")
    return text


def _text(text: str) -> str:
    for character in text:
        if unicodedata.category(character) in _CONTROLS and character not in _FORMATTING:
            name = character.encode("unicode_escape").decode()
            raise ValueError(f"holds {name}; allowed: text without control characters")
    return text


def _line(text: str) -> str:
    if not text.strip() or set(text) & _LINE_ENDS:
        raise ValueError("allowed: one line of text, without tabs and line ends")
    return _text(text)


_NO_ARGUMENTS = frozenset(
    {
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
        *("checkpoint_path", "cache_dir", "num_classes", "drop_path_rate", "features_only"),
        *("scriptable", "exportable", "no_jit"),
    }
)
_GREATEST_ARGUMENT = 2**16


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if name in _NO_ARGUMENTS:
            raise ValueError(
                f"'{name}' isn't the model's own: it downloads, reads other files, or is given by "
                "other keys; allowed: what its constructor takes, such as img_size"
            )
        if isinstance(value, int | float) and not abs(value) <= _GREATEST_ARGUMENT:
            raise ValueError(f"'{name}' is {value}; allowed: up to {_GREATEST_ARGUMENT:,}")
    return values


def distinct(values: list[Any]) -> list[Any]:
    """Refuse an empty list, and one that gives a value twice.

    Raises:
        ValueError: The list is empty or repeats a value.
    """
    doubles = sorted(str(value) for value, count in Counter(values).items() if count > 1)
    if doubles:
        raise ValueError(f"{', '.join(doubles)} given twice; list each once")
    if not values:
        raise ValueError("empty; list at least one")
    return values


Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Line = Annotated[str, AfterValidator(_line)]
"""Text that tables and figures print in one line."""
Text = Annotated[str, AfterValidator(_text)]
"""Text of any number of lines, without other control characters."""
Bits = Annotated[str, AfterValidator(_bits)]
Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[list[Name], AfterValidator(distinct)]
ModelArgs = Annotated[dict[Name, bool | int | float | str], AfterValidator(_arguments)]
"""What a model's constructor gets beside the number of classes; nothing that reads or downloads."""
