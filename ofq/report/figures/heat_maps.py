"""Heat maps of oscillation over the model's blocks and roles."""

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ofq.report.collect import Records, mid_epoch
from ofq.report.figures.recorded import nothing_recorded
from ofq.report.figures.registry import NO_RATES, Drawn, register_figure, require
from ofq.report.figures.style import COLUMN, PAGE, broken, broken_name, new_figure, panels

TALL = 7.5
"""Largest height in inches of a figure's rows, so that it fits on a page."""

_TOP = 0.85  # of a colour bar, to which it has ticks
_TICK = 0.125  # height in inches that a tick's label takes

ROLES = ("q", "k", "qk", "v", "proj", "fc1", "fc2")

ACTIVATIONS = (
    "attention input",
    "q",
    "k",
    "qk",
    "v",
    "probabilities",
    "proj input",
    "fc1 input",
    "fc2 input",
)

_BLOCKS = 0.15  # height in inches that blocks' labels take below each row
_LETTER = 0.06  # width in inches that a letter of them takes
_SIDES = 1.6  # width in inches that names of rows and a colour bar take


class Place(NamedTuple):
    """Setting that a heat map shows."""

    model: str
    bits: str
    when: str
    method: str


@register_figure("oscillation_by_role")
def by_role(records: Records) -> Drawn:
    """Draw heat maps of the oscillation rate of one model by block and role: a column per method.

    For one method, draw a column per bits and moment, and a row per model.
    """
    layers = records.curves.read("layers")
    require(layers, "oscillation_rate", NO_RATES)
    picture, of_model = _heat_maps(records, layers, ROLES)
    return Drawn(
        picture,
        f"Oscillation rate by block and role of the weight matrix{of_model}, mean over seeds: at "
        "the median epoch of QAT and at the end of the method's last stage; each bit-width has its "
        "own scale. Grey: the method has "
        "no such matrix (with QKR, query and key are one, qk), or no run has ended.",
    )


@register_figure("activation_oscillation")
def of_activations(records: Records) -> Drawn:
    """Draw heat maps as :func:`by_role` does, of the codes of activations."""
    rows = records.curves.read("activations")
    if rows.empty:
        raise nothing_recorded(records, "activations")
    rows = rows[rows["role"].isin(ACTIVATIONS)]
    picture, of_model = _heat_maps(records, rows, ACTIVATIONS, across=True)
    return Drawn(
        picture,
        f"Oscillation rate of the codes of activations{of_model}, by block and activation, on the "
        "same training images at each step, mean over seeds: at the median epoch of QAT and at "
        "the end of the method's last stage; each bit-width has its own scale. Grey: the method "
        "has no such activation (with QKR, query and key are one, qk), or no run has recorded it.",
    )


def _heat_maps(
    records: Records, layers: pd.DataFrame, known_roles: Sequence[str], across: bool = False
) -> tuple[Figure, str]:
    """Draw heat maps; return them and, where they show one of several models, which.

    Args:
        records: The study.
        layers: Rows with ``epoch``, ``layer``, ``role`` and ``oscillation_rate``.
        known_roles: All roles, in order.
        across: Whether blocks run from left to right, and roles, whose names are long, downwards.
    """
    maps = _maps(records, layers)
    models = list(dict.fromkeys(place.model for place in maps))
    rows, columns = _lines(records, models)
    depths = [_depths(records, maps, line) for line in rows]
    roles = [r for r in known_roles if any(r in frame.columns for frame in maps.values())]
    lines = [len(roles) if across else len(known) for known in depths]
    apart = across and len(models) > 1 and "model" in rows[0]  # rows have blocks of their own
    picture, grid, height = _grid(records, lines, len(columns), apart)
    width = (picture.get_figwidth() - _SIDES) / len(columns)
    tops = _tops(maps)
    images: dict[str, AxesImage] = {}
    drawn: dict[str, list[Axes]] = {}
    for axes, line, known in zip(grid, rows, depths, strict=True):
        for ax, column in zip(axes, columns, strict=True):
            place = Place(**line, **column)
            frame = maps.get(place, pd.DataFrame()).reindex(index=known, columns=roles)
            shown = frame.T if across else frame
            images[place.bits] = _heat(ax, shown, tops.get(place.bits, 1.0))
            if across:
                longest = max(len(depth) for depth in known)
                every = math.ceil((longest + 1) * _LETTER * len(known) / width)
                ax.set_xticks(range(0, len(known), every), known[::every])
                ax.set_yticks(range(len(roles)), roles, fontsize=6.5)
            else:
                every = max(1 if len(known) <= 6 else 2, math.ceil(_TICK / height))
                ax.set_xticks(range(len(roles)), roles, rotation=90, fontsize=6.5)
                ax.set_yticks(range(0, len(known), every), known[::every])
            drawn.setdefault(place.bits, []).append(ax)
            if axes is grid[0]:
                ax.set_title(_heading(records, column, len(columns)))
        axes[0].set_ylabel(_row_name(records, line, "" if across else "block"))
    for ax in grid[-1] if across else []:
        ax.set_xlabel("block")
    _colour_bars(picture, images, drawn, "right" if "bits" in rows[0] else "bottom")
    one_of_several = len(records.study.methods) > 1 and len(records.study.models) > 1
    return picture, f" of {models[0]}" if one_of_several else ""


def _grid(
    records: Records, lines: list[int], columns: int, apart: bool
) -> tuple[Figure, list[list[Axes]], float]:
    """Return a figure, its panels for given lines per row, and a line's height in inches.

    Args:
        records: The study.
        lines: Number of lines of each row's heat maps.
        columns: Number of heat maps in a row.
        apart: Whether each row has its own ticks below it.
    """
    count, total = len(lines), sum(lines)
    between = 0.2 + 0.1 * (len(records.study.models) > 1) + _BLOCKS * apart
    line = min(0.24 if total <= 4 * count else 0.16, (TALL - between * count) / total)
    picture = new_figure(PAGE if columns > 1 else COLUMN, 1.3 + between * count + line * total)
    shared = {"sharex": "row" if apart else True, "sharey": "row"}
    return (
        picture,
        panels(picture, count, columns, **shared, gridspec_kw={"height_ratios": lines}),
        line,
    )


def _lines(
    records: Records, models: list[str]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the settings shared by each row, and by each column, of the heat maps."""
    study = records.study
    moments = [{"bits": b, "when": when} for b in study.bits for when in ("mid-run", "end")]
    if len(study.methods) == 1:
        columns = [{"method": study.methods[0], **moment} for moment in moments]
        return [{"model": model} for model in models], columns
    rows = [{"model": models[0], **moment} for moment in moments]
    return rows, [{"method": method} for method in study.methods]


def _depths(records: Records, maps: dict[Place, pd.DataFrame], line: dict[str, str]) -> list[str]:
    """Return the blocks of a row's model, in order."""
    mine = [frame for place, frame in maps.items() if place.model == line["model"]]
    return sorted({depth for frame in mine for depth in frame.index}, key=_depth_order) or ["–"]


def _heading(records: Records, column: dict[str, str], panels: int) -> str:
    if "bits" in column:
        return f"{column['bits']}\n{column['when']}"
    return broken(records.labels[column["method"]], panels)


def _row_name(records: Records, line: dict[str, str], axis: str) -> str:
    names = []
    if "bits" in line:
        names.append(f"{line['bits']}, {line['when']}")
    elif len(records.study.models) > 1:
        names.append(broken_name(line["model"], 3))
    return "\n".join([*names, *([axis] if axis else [])])


def _maps(records: Records, layers: pd.DataFrame) -> dict[Place, pd.DataFrame]:
    """Return a frame of blocks × roles for each setting."""
    study, maps = records.study, {}
    for model in study.models:
        for bits in study.bits:
            for method in study.methods:
                rows = records.of(layers, model=model, bits=bits, method=method)
                if rows.empty:
                    continue
                moments = {"mid-run": mid_epoch(rows), "end": rows["epoch"].max()}
                for when, epoch in moments.items():
                    now = rows[rows["epoch"] == epoch]
                    now = now.assign(depth=now["layer"].map(_depth))
                    maps[Place(model, bits, when, method)] = now.pivot_table(
                        values="oscillation_rate", index="depth", columns="role", aggfunc="mean"
                    )
    return maps


@cache
def _depth(layer: str) -> str:
    """Return a layer's block: ``blocks.3.mlp.fc1`` → 3, ``layers.0.blocks.1.attn.proj`` → 0.1."""
    return ".".join(re.findall(r"(?<=\.)\d+", layer)) or layer


def _depth_order(depth: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in depth.split(".")]


def _heat(ax: Axes, frame: pd.DataFrame, top: float) -> AxesImage:
    values: NDArray[np.float64] = frame.to_numpy(float)
    ax.grid(False)
    ax.set_facecolor("#ececec")
    ax.spines[:].set_visible(False)
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="none")
    ax.tick_params(length=0)
    return image


def _tops(maps: dict[Place, pd.DataFrame]) -> dict[str, float]:
    """Return the highest rate at each bits, since those of more bits are several times as high."""
    tops: dict[str, float] = {}
    for place, frame in maps.items():
        if frame.size:
            tops[place.bits] = max(tops.get(place.bits, 0.0), float(np.nanmax(frame)))
    return {bits: top or 1.0 for bits, top in tops.items()}


def _colour_bars(
    picture: Any, images: dict[str, AxesImage], drawn: dict[str, list[Axes]], side: str
) -> None:
    """Draw a colour bar beside the panels of each bits."""
    for bits, image in images.items():
        top = image.get_clim()[1] or 1.0
        # none at the bar's very end, where the next bar begins
        ticks = [tick for tick in MaxNLocator(4).tick_values(0, top) if 0 <= tick < _TOP * top]
        bar = picture.colorbar(
            image, ax=drawn[bits], location=side, fraction=0.03, pad=0.01, ticks=ticks
        )
        bar.set_label("oscillation rate (%)")
        bar.outline.set_visible(False)
