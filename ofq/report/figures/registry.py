"""Figures by name."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from ofq.errors import UserError
from ofq.report.collect import Records


@dataclass(frozen=True)
class Drawn:
    """A figure with its caption."""

    figure: Figure
    caption: str


class NothingToDraw(Exception):
    """The runs that have finished hold nothing that a figure could show; the message says what."""


NO_RATES = "no finished run has oscillation rates"


def require(frame: pd.DataFrame, column: str, reason: str) -> None:
    """Refuse to draw a figure of a quantity that no row has.

    Raises:
        NothingToDraw: There is none, for the given reason.
    """
    if column not in frame or frame[column].isna().all():
        raise NothingToDraw(reason)


Draw = Callable[[Records], Drawn]

FIGURES: dict[str, Draw] = {}
"""Every figure by its name; may raise :class:`NothingToDraw`."""


def register_figure(name: str) -> Callable[[Draw], Draw]:
    """Function decorator that makes a figure available to studies under a name.

    The function takes the study's :class:`~ofq.report.collect.Records` and returns the figure with
    its caption (:class:`Drawn`), or raises :class:`NothingToDraw`.

    Raises:
        UserError: The name is taken by another function.

    Example:
        >>> @register_figure("mine")
        ... def mine(records: Records) -> Drawn: ...
    """

    def register(draw: Draw) -> Draw:
        known = FIGURES.get(name)
        if known and (known.__module__, known.__name__) != (draw.__module__, draw.__name__):
            raise UserError(f"a figure named '{name}' is already registered")
        FIGURES[name] = draw
        return draw

    return register
