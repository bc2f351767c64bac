"""Values of config files and model files alike: bits, names, models' arguments, untrusted JSON.

The standard library alone reads and checks them here: a model's file needs no config models.
"""

import json
import re
from typing import Any

from ofq.console import printable
from ofq.errors import UserError

OFF = 32
"""Bit-width that stands for "not quantized"."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_BITS = re.compile(r"W(\d+)A(\d+)")
DEEPEST = 40
"""Most levels of lists and mappings within each other."""

INTEGER_BITS = 64
"""Most bits of an integer."""

_NO_ARGUMENTS = frozenset(
    {
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
        *("checkpoint_path", "cache_dir", "num_classes", "drop_path_rate", "features_only"),
        *("scriptable", "exportable", "no_jit"),
    }
)
_GREATEST_ARGUMENT = 2**16


class TooMuch(Exception):
    """Raised when a file holds more than a config or a record can need."""


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


def checked_name(text: str) -> str:
    """Return a name of a part, model or file.

    Raises:
        ValueError: It has other characters than a name may have.
    """
    if not NAME.fullmatch(text):
        raise ValueError("allowed in a name: letters, digits, '_', '-', '.', '+'")
    return text


def checked_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model's constructor.

    Raises:
        ValueError: One of them downloads, reads files or is given otherwise, or a number is larger
            than 2^16.
    """
    for name, value in values.items():
        if name in _NO_ARGUMENTS:
            raise ValueError(
                f"'{name}' isn't the model's own: it downloads, reads other files, or is given by "
                "other keys; allowed: what its constructor takes, such as img_size"
            )
        if isinstance(value, int | float) and not abs(value) <= _GREATEST_ARGUMENT:
            raise ValueError(f"'{name}' is {value}; allowed: up to {_GREATEST_ARGUMENT:,}")
    return values


def read_json(content: str | bytes, source: str) -> Any:
    """Parse untrusted JSON.

    Args:
        content: The text.
        source: Its origin, for the error.

    Raises:
        UserError: It isn't JSON, or is deeper or has longer integers than a record can need.
    """
    try:
        data = json.loads(content)
        check_values(data)
    except (ValueError, RecursionError, TooMuch) as error:
        raise UserError(f"{source}: not valid JSON ({printable(error)})") from None
    return data


def check_values(data: Any) -> None:
    """Refuse deep nesting, and integers that no computation takes.

    Raises:
        TooMuch: Data are nested deeper than 40 levels, or hold an integer of more than 64 bits.
    """
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise TooMuch(f"nested deeper than {DEEPEST} levels")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list | tuple | set):
                inner += value
            elif isinstance(value, int) and value.bit_length() > INTEGER_BITS:
                raise TooMuch(f"an integer of more than {INTEGER_BITS} bits")
        level = inner
