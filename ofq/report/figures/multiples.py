"""Small multiples: a panel per method, where one panel for all would hold too many curves."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ofq.report.collect import Records
from ofq.report.figures.style import PAGE, broken_name, name_lines, new_figure, panels

MOST = 6
"""Most curves in one panel."""

BEHIND: dict[str, Any] = {"color": "#d4d4d4", "linewidth": 0.6, "zorder": 0.5}
"""Keyword arguments for the curves of the other methods, behind a method's own."""

SENTENCE = " A panel per method; in light grey, the other methods."
"""What captions say about small multiples."""

ROOM = 0.12
"""Room above and below the data, as a share of what they span, for whole markers in low panels."""

_COLUMNS = 4
_FACETS = 6  # most facets side by side
_SMALL = 7.0  # size of the letters
_LOW, _HIGH = 0.62, 0.85  # heights in inches of a panel in a long column, and in a short one


@dataclass(frozen=True)
class Facet:
    """One quantity of one model at some bits, of which every method has a curve.

    Attributes:
        model: The model.
        bits: The bits; empty if they are on the axis.
        quantity: The quantity's key, for the function that draws it.
        name: What its axis says.
        methods: The methods that have a curve, in the study's order.
    """

    model: str
    bits: str
    quantity: str
    name: str
    methods: tuple[str, ...]


DrawCurve = Callable[[Axes, Facet, str, bool], None]
"""Draws a method's curve of a facet, behind those of others if the last argument is true."""


def crowded(facets: Iterable[Facet]) -> bool:
    """Return whether a facet has more curves than one panel should hold."""
    return any(len(facet.methods) > MOST for facet in facets)


def facets_of(records: Records, quantities: dict[str, str], methods: Iterable[str]) -> list[Facet]:
    """Return the facets of a study: every quantity of each model and bits.

    Args:
        records: The study.
        quantities: Names of the quantities by their keys.
        methods: The methods that may have curves. Those without a finished run are left out, and
            those that inject noise into models of another method, whose curves are that one's.
    """
    study, methods = records.study, list(methods)
    found = []
    for model in study.models:
        for bits in study.bits:
            runs = records.of(records.runs, model=model, bits=bits)
            known = tuple(m for m in methods if _has_own_curve(records, runs, m))
            found += [Facet(model, bits, key, name, known) for key, name in quantities.items()]
    return found


def _has_own_curve(records: Records, runs: pd.DataFrame, method: str) -> bool:
    mine = runs.loc[runs["method"] == method, "chain"]
    if mine.empty or records.methods[method].noise is None:
        return not mine.empty
    return not {chain.split(" > ")[-2] for chain in mine} <= set(runs["run"])


def small_multiples(
    records: Records, facets: list[Facet], draw: DrawCurve, x: str, ticks: int = 4
) -> tuple[Figure, dict[tuple[Facet, str], Axes]]:
    """Draw a panel per facet and method; those of a facet have the same limits.

    Args:
        records: The study.
        facets: The facets.
        draw: Function that draws one curve.
        x: What the horizontal axis says.
        ticks: Most intervals between its ticks, which stand at integers; 0 to leave them.

    Returns:
        The figure, and the panels by facet and method, for each method that the facet has.
    """
    methods = [m for m in records.study.methods if any(m in facet.methods for facet in facets)]
    lay_out = _by_row if _is_wide(facets) else _by_block
    picture, grid, places = lay_out(facets, methods)
    shown: dict[tuple[Facet, str], Axes] = {}
    for (facet, method), (row, column) in places.items():
        ax = grid[row][column]
        if method not in facet.methods:
            continue
        for other in facet.methods:
            if other != method:
                draw(ax, facet, other, True)
        _merge_lines(ax)
        ax.margins(0.06, ROOM)
        draw(ax, facet, method, False)
        shown[facet, method] = ax
    for ax in {ax for axes in grid for ax in axes} - set(shown.values()):
        ax.set_axis_off()
    _label(records, shown, places, x)
    for ax in shown.values():
        ax.tick_params(labelsize=6.5)
        ax.yaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))
        if ticks:
            ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    _share_limits(shown)
    return picture, shown


def _merge_lines(ax: Axes) -> None:
    """Make the curves behind one line with gaps, which takes a third of the room in a file."""
    curves = [np.asarray(line.get_data(), float) for line in ax.get_lines()]
    for line in list(ax.get_lines()):
        line.remove()
    if curves:
        gap = np.full((2, 1), np.nan)
        ax.plot(*np.hstack([part for curve in curves for part in (curve, gap)]), **BEHIND)


def _share_limits(shown: dict[tuple[Facet, str], Axes]) -> None:
    """Give panels the narrowest limits that hold all: across within a figure, up within a facet."""
    lefts, rights = zip(*(ax.get_xlim() for ax in shown.values()), strict=True)
    for facet in {facet for facet, _ in shown}:
        axes = [ax for (of, _), ax in shown.items() if of == facet]
        lows, highs = zip(*(ax.get_ylim() for ax in axes), strict=True)
        for ax in axes:
            ax.set(ylim=(min(lows), max(highs)), xlim=(min(lefts), max(rights)))


_Places = dict[tuple[Facet, str], tuple[int, int]]
_Layout = tuple[Figure, list[list[Axes]], _Places]


def _is_wide(facets: list[Facet]) -> bool:
    return len(facets) > 2


def _by_block(facets: list[Facet], methods: list[str]) -> _Layout:
    """Lay methods out side by side, the facets of each below one another."""
    rows = ceil(len(methods) / _COLUMNS) * len(facets)
    picture = new_figure(PAGE, 0.4 + (_HIGH + 0.3 / len(facets)) * rows)
    places = {
        (facet, method): (i // _COLUMNS * len(facets) + k, i % _COLUMNS)
        for i, method in enumerate(methods)
        for k, facet in enumerate(facets)
    }
    return picture, panels(picture, rows, _COLUMNS), places


def _by_row(facets: list[Facet], methods: list[str]) -> _Layout:
    """Lay out a row per method and a column per facet; if those are many, models one by one."""
    models = list(dict.fromkeys(facet.model for facet in facets))
    blocks = (
        [facets]
        if len(facets) <= _FACETS
        else [[f for f in facets if f.model == m] for m in models]
    )
    rows = len(blocks) * len(methods)
    picture = new_figure(PAGE, 0.8 * len(blocks) + (_LOW if rows > 8 else _HIGH) * rows)
    places = {
        (facet, method): (b * len(methods) + i, k)
        for b, block in enumerate(blocks)
        for k, facet in enumerate(block)
        for i, method in enumerate(methods)
    }
    return picture, panels(picture, rows, max(map(len, blocks))), places


def _label(records: Records, shown: dict[tuple[Facet, str], Axes], places: _Places, x: str) -> None:
    """Name methods and facets on the outer panels, and the horizontal axis on the lowest."""
    facets = list(dict.fromkeys(facet for facet, _ in places))
    last = max(row for row, _ in places.values())
    by_place = {places[key]: key for key in shown}
    for (row, column), (facet, method) in by_place.items():
        ax = shown[facet, method]
        is_top = not any(f == facet and places[f, m][0] < row for f, m in shown)
        is_left = not any((row, other) in by_place for other in range(column))
        of_facet, of_method = is_top, is_left
        if not _is_wide(facets):
            of_facet, of_method = (
                is_left,
                not any(m == method and places[f, m][0] < row for f, m in shown),
            )
        if of_facet:
            _name_facet(ax, records, facet, facets)
        if of_method:
            _name_method(ax, records.labels[method], facets)
        if any((below, column) in by_place for below in range(row + 1, last + 1)):
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xlabel(x, fontsize=_SMALL)
            # what it says stands in the empty panels below, if there are any
            ax.xaxis.set_in_layout(row == last)


def _name_method(ax: Axes, label: str, facets: list[Facet]) -> None:
    if _is_wide(facets):
        name = name_lines(label, 22)
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=_SMALL)
    else:
        ax.set_title(name_lines(label, 28), fontsize=_SMALL)


def _name_facet(ax: Axes, records: Records, facet: Facet, facets: list[Facet]) -> None:
    """Say on a panel's title, or on its axis, which facet it shows, if several could be meant."""
    model = [broken_name(facet.model, 6)] if len(records.study.models) > 1 else []
    bits = [facet.bits] if len({each.bits for each in facets}) > 1 else []
    name = fill(facet.name.replace("\n", " "), 15)
    text = "\n".join([*model, *bits, name])
    if _is_wide(facets):
        ax.set_title(text, fontsize=_SMALL)
    else:
        ax.set_ylabel(text, fontsize=_SMALL)
