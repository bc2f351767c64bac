"""Small multiples: a panel per method, where one panel for all would hold too many curves."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ofq.report.collect import Records
from ofq.report.figures.style import PAGE, broken, broken_name, new_figure, panels

MOST = 6
"""Most curves in one panel."""

BEHIND = {"color": "#d4d4d4", "linewidth": 0.6, "zorder": 0.5}
"""Keyword arguments for the curves of the other methods, behind a method's own."""

SENTENCE = " A panel per method; in light grey, the other methods."
"""What captions say about small multiples."""

_COLUMNS = 4
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
        methods: The methods that may have curves; those without a finished run are left out.
    """
    study, methods = records.study, list(methods)
    found = []
    for model in study.models:
        for bits in study.bits:
            runs = set(records.of(records.runs, model=model, bits=bits)["method"])
            known = tuple(method for method in methods if method in runs)
            found += [Facet(model, bits, key, name, known) for key, name in quantities.items()]
    return found


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
    wide = len(facets) > 2
    picture, grid, places = (_by_row if wide else _by_block)(facets, methods)
    shown: dict[tuple[Facet, str], Axes] = {}
    for (facet, method), (row, column) in places.items():
        ax = grid[row][column]
        if method not in facet.methods:
            continue
        for other in facet.methods:
            if other != method:
                draw(ax, facet, other, True)
        draw(ax, facet, method, False)
        shown[facet, method] = ax
    for ax in {ax for axes in grid for ax in axes} - set(shown.values()):
        ax.set_axis_off()
    _label(records, shown, places, x)
    for ax in shown.values():
        ax.tick_params(labelsize=6.5)
        ax.yaxis.set_major_locator(MaxNLocator(3))
        if ticks:
            ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    _share_limits(shown)
    return picture, shown


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
    """Lay out a row per method, and a column per facet of a model; models below one another."""
    models = list(dict.fromkeys(facet.model for facet in facets))
    columns = [[f for f in facets if f.model == model] for model in models]
    rows = len(models) * len(methods)
    picture = new_figure(PAGE, 0.8 + (_LOW if rows > 8 else _HIGH) * rows)
    places = {
        (facet, method): (m * len(methods) + i, k)
        for m, of_model in enumerate(columns)
        for k, facet in enumerate(of_model)
        for i, method in enumerate(methods)
    }
    return picture, panels(picture, rows, max(map(len, columns))), places


def _label(records: Records, shown: dict[tuple[Facet, str], Axes], places: _Places, x: str) -> None:
    """Name methods and facets on the outer panels, and the horizontal axis on the lowest."""
    wide = len({facet for facet, _ in places}) > 2
    lowest: dict[int, int] = {}
    first: dict[str, int] = {}
    for facet, method in shown:
        row, column = places[facet, method]
        lowest[column] = max(row, lowest.get(column, row))
        first[facet.model] = min(row, first.get(facet.model, row))
    facets = list(dict.fromkeys(facet for facet, _ in places))
    for (facet, method), ax in shown.items():
        row, column = places[facet, method]
        label = records.labels[method]
        if wide:
            if row == first[facet.model]:
                ax.set_title(_facet_title(records, facet, len(facets)), fontsize=7)
            if column == 0:
                ax.set_ylabel(broken(label, 4), rotation=0, ha="right", va="center", fontsize=7)
        else:
            if facet == facets[0]:
                ax.set_title(broken(label, _COLUMNS), fontsize=7)
            if column == 0:
                ax.set_ylabel(_facet_name(records, facet), fontsize=7)
        if row == lowest[column]:
            ax.set_xlabel(x, fontsize=7)
        else:
            ax.tick_params(labelbottom=False)


def _facet_title(records: Records, facet: Facet, count: int) -> str:
    many = len(records.study.models) > 1
    name = f"{broken_name(facet.model, min(count, 6))}\n" if many else ""
    return f"{name}{facet.bits}\n{facet.name}".replace("\n\n", "\n")


def _facet_name(records: Records, facet: Facet) -> str:
    name = facet.name if len(facet.name) < 20 else facet.name.replace(" (", "\n(")
    many = len(records.study.models) > 1
    return f"{broken_name(facet.model, 4)}\n{name}" if many else name
