"""Values that several config models share: stages, bits, names and seeds."""

import unicodedata
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ofq.values import checked_arguments, checked_name, parse_bits

QuantizedStage = Literal["qat", "cga"]
TrainedStage = Literal["fp", "qat", "cga"]
Stage = Literal["fp", "qat", "cga", "noise", "released"]
State = Literal["waiting", "running", "interrupted", "failed", "done"]
"""State of a run, as its folder tells it."""

_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_LINE_ENDS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
_FORMATTING = frozenset(
    "\t\n\r\u00ad\u200c\u200d"
)  # soft hyphens, joiners of Indic scripts and emoji


def _bits(text: str) -> str:
    parse_bits(text)
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
Name = Annotated[str, AfterValidator(checked_name)]
Names = Annotated[list[Name], AfterValidator(distinct)]
ModelArgs = Annotated[dict[Name, bool | int | float | str], AfterValidator(checked_arguments)]
"""What a model's constructor gets beside the number of classes; nothing that reads or downloads."""
