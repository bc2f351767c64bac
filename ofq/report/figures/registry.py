"""Registry of figures by name."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from ofq.registry import Registry
from ofq.report.collect import Records


@dataclass(frozen=True)
class Drawn:
    """Figure with its caption.

    Attributes:
        figure: The figure.
        caption: Its caption, a sentence or more.
    """

    figure: Figure
    caption: str


class NothingToDraw(Exception):
    """Raised when the finished runs have nothing for a figure to show; the message says what."""


NO_RATES = "no finished run has oscillation rates"


def require(frame: pd.DataFrame, column: str, reason: str) -> None:
    """Refuse to draw a figure of a quantity that no row has.

    Raises:
        NothingToDraw: No row has it; the message is the given reason.
    """
    if column not in frame or frame[column].isna().all():
        raise NothingToDraw(reason)


Draw = Callable[[Records], Drawn]

FIGURES: Registry[Draw] = Registry("figure")
"""Drawing function of every figure by name; may raise :class:`NothingToDraw`."""


def register_figure(name: str) -> Callable[[Draw], Draw]:
    """Register a figure for studies under a name; a function decorator.

    The function takes the study's ``ofq.report.collect.Records`` and returns the figure with its
    caption (:class:`Drawn`), or raises ``ofq.report.figures.registry.NothingToDraw``.

    Raises:
        UserError: The name is taken by another function.

    Example:
        >>> @register_figure("mine")
        ... def mine(records: Records) -> Drawn: ...
    """
    return FIGURES.register(name)
