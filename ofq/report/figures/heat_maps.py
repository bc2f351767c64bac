"""Heat maps of oscillation over the model's blocks and roles."""

import math
import re
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
from ofq.report.figures.registry import NO_RATES, Drawn, register_figure, require
from ofq.report.figures.style import COLUMN, PAGE, broken, broken_name, new_figure, panels

TALL = 7.5
"""Largest height in inches of a figure's rows, so that it fits on a page."""

_TOP = 0.85  # of a colour bar, to which it has ticks
_TICK = 0.125  # height in inches that a tick's label takes

ROLES = ("q", "k", "qk", "v", "proj", "fc1", "fc2")


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
    maps = _maps(records, layers)
    models = list(dict.fromkeys(place.model for place in maps))
    rows, columns = _lines(records, models)
    depths = [_depths(records, maps, line) for line in rows]
    roles = [r for r in ROLES if any(r in frame.columns for frame in maps.values())]
    picture, grid, block = _grid(records, [len(known) for known in depths], len(columns))
    tops = _tops(maps)
    images: dict[str, AxesImage] = {}
    drawn: dict[str, list[Axes]] = {}
    for axes, line, known in zip(grid, rows, depths, strict=True):
        for ax, column in zip(axes, columns, strict=True):
            place = Place(**line, **column)
            frame = maps.get(place, pd.DataFrame()).reindex(index=known, columns=roles)
            images[place.bits] = _heat(ax, frame, tops.get(place.bits, 1.0), block)
            drawn.setdefault(place.bits, []).append(ax)
            if axes is grid[0]:
                ax.set_title(_heading(records, column, len(columns)))
        axes[0].set_ylabel(_row_name(records, line))
    _colour_bars(picture, images, drawn, "right" if "bits" in rows[0] else "bottom")
    one_of_several = len(records.study.methods) > 1 and len(records.study.models) > 1
    of_model = f" of {models[0]}" if one_of_several else ""
    return Drawn(
        picture,
        f"Oscillation rate by block and role of the weight matrix{of_model}, mean over seeds: at "
        "the median epoch of QAT and at the end of the method's last stage; each bit-width has its "
        "own scale. Grey: the method has "
        "no such matrix (with QKR, query and key are one, qk), or no run has ended.",
    )


def _grid(
    records: Records, blocks: list[int], columns: int
) -> tuple[Figure, list[list[Axes]], float]:
    """Return a figure, its panels for given blocks per row, and a block's height in inches."""
    count, total = len(blocks), sum(blocks)
    between = 0.2 + 0.1 * (len(records.study.models) > 1)
    block = min(0.24 if total <= 4 * count else 0.16, (TALL - between * count) / total)
    picture = new_figure(PAGE if columns > 1 else COLUMN, 1.3 + between * count + block * total)
    shared = {"sharex": True, "sharey": "row", "gridspec_kw": {"height_ratios": blocks}}
    return picture, panels(picture, count, columns, **shared), block


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


def _row_name(records: Records, line: dict[str, str]) -> str:
    if "bits" in line:
        return f"{line['bits']}, {line['when']}\nblock"
    return f"{broken_name(line['model'], 3)}\nblock" if len(records.study.models) > 1 else "block"


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


def _heat(ax: Axes, frame: pd.DataFrame, top: float, block: float) -> AxesImage:
    values: NDArray[np.float64] = frame.to_numpy(float)
    ax.grid(False)
    ax.set_facecolor("#ececec")
    ax.spines[:].set_visible(False)
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="none")
    ax.set_xticks(range(len(frame.columns)), frame.columns, rotation=90)
    every = max(1 if len(frame.index) <= 6 else 2, math.ceil(_TICK / block))
    ax.set_yticks(range(0, len(frame.index), every), frame.index[::every])
    ax.tick_params(length=0)
    ax.tick_params(axis="x", labelsize=6.5)
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
