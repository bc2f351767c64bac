"""Common style of all figures: sizes, fonts, axes, legends and files."""

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import BytesIO, StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from ofq.report.figures.looks import Look
from ofq.report.statistics import Summary

COLUMN = 3.4
"""Width in inches of a figure in one column of a paper."""

PAGE = 7.0
"""Width in inches of a figure over both columns."""

GREY = "#666666"

ENOUGH_SEEDS = 3
"""Fewest seeds with an interval in figures: over two, it is some twelve times as wide as they."""

_DPI = 200
_LETTERS = 72, 40  # most letters over the whole width, and in one title's line

_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "ofq",
    "path.simplify_threshold": 0.2,
    "text.parse_math": False,  # labels may have dollar signs
}


def styled() -> AbstractContextManager[None]:
    """Return the context in which all figures are drawn and saved."""
    return mpl.rc_context(_SETTINGS)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of given size in inches, with constrained layout."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(figure: Figure, rows: int, columns: int, **sharing: Any) -> list[list[Axes]]:
    """Return a grid of axes."""
    return figure.subplots(rows, columns, squeeze=False, **sharing).tolist()


def over_seeds(ax: Axes, rows: pd.DataFrame, x: str, y: str, label: str, look: Look) -> None:
    """Draw a method's mean over seeds as a line, shaded from the lowest to the highest.

    Args:
        ax: The axes.
        rows: One row per seed and place.
        x: The column of places.
        y: The column of values; rows without one are left out.
        label: The method's label.
        look: The method's style.
    """
    seeds = rows.dropna(subset=[y]).groupby(x)[y]
    mean = seeds.mean()
    every = max(1, len(mean) // 6)
    ax.plot(mean.index, mean, label=label, markevery=every, linestyle=look.linestyle, **look.marks)
    ax.fill_between(mean.index, seeds.min(), seeds.max(), color=look.color, alpha=0.18, linewidth=0)


def fit_to_data(
    axes: Sequence[Axes], values: ArrayLike, upright: bool = True, room: float = 0.06
) -> None:
    """Set the limits of axes by their data, so that intervals drawn later don't set them.

    Args:
        axes: The axes.
        values: All data that they show, finite or NaN.
        upright: Whether the values' axis is the vertical one.
        room: Free room on either side of the data, as a share of what they span.
    """
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if not known.size:
        return
    low, high = float(known.min()), float(known.max())
    margin = room * (high - low) or max(abs(low) / 100, 1e-6)
    for ax in axes:
        (ax.set_ylim if upright else ax.set_xlim)(low - margin, high + margin)


def draw_interval(
    ax: Axes, place: float, summary: Summary, color: str, upright: bool = True
) -> None:
    """Draw a mean's interval within the axes' limits, with arrows where it goes on beyond.

    Nothing is drawn for fewer than :data:`ENOUGH_SEEDS` values, or without an interval.

    Args:
        ax: The axes, with their final limits.
        place: Where it stands on the other axis.
        summary: The mean and its interval.
        color: Its colour.
        upright: Whether it is vertical.
    """
    if summary.n < ENOUGH_SEEDS or math.isnan(summary.low):
        return
    lowest, highest = ax.get_ylim() if upright else ax.get_xlim()
    inside = 0.012 * (highest - lowest)  # so that an arrow's head doesn't touch the ticks' labels
    low, high = np.clip([summary.low, summary.high], lowest + inside, highest - inside).tolist()
    caps = ("_", "v", "^") if upright else ("|", "<", ">")
    marks = [
        caps[1] if summary.low < lowest else caps[0],
        caps[2] if summary.high > highest else caps[0],
    ]
    for ends, marker in (((low, high), ""), ((low,), marks[0]), ((high,), marks[1])):
        places = [place] * len(ends)
        x, y = (places, ends) if upright else (ends, places)
        ax.plot(x, y, color=color, marker=marker, linewidth=1, markersize=3.5, clip_on=False)


_PLACES = re.compile(r' (?:d|x|y)="[^"]+"')
_PATHS = re.compile(r' d="([^"]+)"')
_STEPS = re.compile(r"([MLQCz])([^MLQCz]*)")
_FURTHER_DIGITS = re.compile(r"(\.\d)\d+")

_LEGEND_ROW = 0.17
"""Height in inches of a legend's row."""


def legend_height(labels: int, columns: int) -> float:
    """Return the height in inches of a legend with given numbers of labels and columns."""
    return _LEGEND_ROW * math.ceil(labels / columns)


def add_legend(figure: Figure, columns: int) -> None:
    """Add a legend of all panels' labels below them, in as many columns as fit.

    Args:
        figure: The figure; it grows by the rows that fewer columns need.
        columns: The most columns; the figure's height was chosen for these.
    """
    labels: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    for fitting in range(columns, 0, -1):
        legend = figure.legend(
            list(labels.values()), list(labels), loc="outside lower center", ncols=fitting
        )
        figure.draw_without_rendering()
        if fitting == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    more = math.ceil(len(labels) / fitting) - math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * more)


def broken(label: str, panels: int) -> str:
    """Break a method's label into several lines, before techniques only.

    Args:
        label: The label.
        panels: Number of panels with such a title side by side.
    """
    return _filled(re.split(r"(?= \+ | \()", label), panels)


def broken_name(model: str, panels: int) -> str:
    """Break a model's name into several lines, after underscores only; as :func:`broken`."""
    return _filled(re.split(r"(?<=_)", model), panels)


def name_lines(label: str, letters: int = 24) -> str:
    """Break a method's label into lines of at most so many letters, between words."""
    return fill(label.replace("+ ", "+\N{NO-BREAK SPACE}"), letters, break_on_hyphens=False)


def _filled(parts: list[str], panels: int) -> str:
    lines, room = [""], min(_LETTERS[0] // panels, _LETTERS[1])
    for part in parts:
        if len((lines[-1] + part).strip()) <= room:
            lines[-1] += part
        else:
            lines.append(part)
    return "\n".join(line.strip() for line in lines if line)


def save(figure: Figure, path: Path) -> None:
    """Write ``path`` with ``.svg`` and ``.png`` (200 dpi), byte-identical each time."""
    drawing = StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    path.with_suffix(".svg").write_text(_compact(drawing.getvalue()), encoding="utf-8")
    figure.set_layout_engine("none")  # both files share one layout, computed once
    raster = BytesIO()
    figure.savefig(raster, format="png", dpi=_DPI, pil_kwargs={"compress_level": 0})
    # 256 well-chosen colours look equal, in a third of the bytes
    colours = (
        Image.open(raster)
        .convert("RGB")
        .quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    )
    colours.save(path.with_suffix(".png"), optimize=True, dpi=(_DPI, _DPI))


def _compact(svg: str) -> str:
    """Shorten a drawing: coordinates in tenths of a point, and compact paths."""
    svg = _PLACES.sub(lambda place: _FURTHER_DIGITS.sub(r"\1", place[0]), svg)
    return _PATHS.sub(lambda path: _shortened(path[1]), svg)


def _shortened(path: str) -> str:
    """Shorten a path to one line, with one coordinate for horizontal and vertical steps."""
    parts: list[str] = []
    last = ["", ""]
    for letter, numbers in ((step[1], step[2].split()) for step in _STEPS.finditer(path)):
        if letter == "L" and numbers[0] == last[0]:
            parts.append(f"V{numbers[1]}")
        elif letter == "L" and numbers[1] == last[1]:
            parts.append(f"H{numbers[0]}")
        else:
            parts.append(letter + " ".join(numbers))
        last = numbers[-2:] or last
    return f' d="{"".join(parts)}"'
