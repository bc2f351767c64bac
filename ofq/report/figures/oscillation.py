"""Oscillation over training, and where in the model it happens."""

import re
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from ofq.report.collect import Records, mid_epoch
from ofq.report.figures.registry import NO_RATES, Drawn, figure, require
from ofq.report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    add_legend,
    broken,
    looks,
    new_figure,
    over_seeds,
    panels,
)

QUANTITIES = {
    "oscillation_rate": "oscillation rate (%)",
    "flips": "flips per 1,000\nweights and step",
}

ROLES = ("q", "k", "qk", "v", "proj", "fc1", "fc2")


@figure("oscillation_over_training")
def over_training(records: Records) -> Drawn:
    """Oscillation rate and flips over epochs, a column per bits."""
    study = records.study
    require(records.metrics, "oscillation_rate", NO_RATES)
    width = COLUMN if len(study.bits) == 1 else PAGE
    columns = 2 if width == COLUMN else 4
    legend = 0.17 * -(-len(study.methods) // columns)
    picture = new_figure(width, 0.5 + legend + 2.9 * len(study.models))
    grid = panels(picture, 2 * len(study.models), len(study.bits), sharex="col", sharey="row")
    for i, model in enumerate(study.models):
        for j, bits in enumerate(study.bits):
            for k, (quantity, name) in enumerate(QUANTITIES.items()):
                ax = grid[2 * i + k][j]
                _curves(ax, records, quantity, model, bits)
                if k == 0:
                    ax.set_title(f"{model}, {bits}" if len(study.models) > 1 else bits)
                if j == 0:
                    ax.set_ylabel(name)
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    for row in grid:  # after all columns are drawn, since a limit stops a shared axis growing
        row[0].set_ylim(bottom=0)
    add_legend(picture, columns)
    return Drawn(picture, _caption(records))


def _caption(records: Records) -> str:
    text = "Oscillation rate (above) and flips (below) over training: mean over seeds"
    text += ", shaded from the lowest to the highest seed." if len(records.study.seeds) > 1 else "."
    if (records.metrics["stage"] == "cga").any():
        text += (
            " Dotted line: QAT ends and CGA begins. A method with CGA whose QAT runs another "
            "method shares is drawn from there on."
        )
    return text


def _curves(ax: Axes, records: Records, quantity: str, model: str, bits: str) -> None:
    style = looks(records.study.methods)
    rows = records.of(records.metrics, model=model, bits=bits)
    for method in records.study.methods:
        mine = records.of(rows, method=method)
        ends = mine[mine["stage"] == "qat"]["epoch"].max()
        if shares_qat(records, model, bits, method):
            mine = mine[mine["epoch"] >= ends]
        over_seeds(ax, mine, "epoch", quantity, records.labels[method], style[method])
        if (mine["stage"] == "cga").any():
            ax.axvline(ends, color=GREY, linestyle=":", linewidth=1)
            ax.annotate(
                "CGA",
                (ends, 1),
                (2, -1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                color=GREY,
                fontsize=6.5,
            )


def shares_qat(records: Records, model: str, bits: str, method: str) -> bool:
    """Whether another method's cell ends where this method's CGA begins."""
    runs = records.of(records.runs, model=model, bits=bits)
    starts = {
        chain.split(" > ")[-2]
        for chain in runs[runs["method"] == method]["chain"]
        if " > " in chain
    }
    return starts <= set(runs["run"]) if starts else False


@figure("oscillation_by_role")
def by_role(records: Records) -> Drawn:
    """Heat maps of the oscillation rate by block and role: a column per method."""
    study = records.study
    layers = records.curves.read("layers")
    require(layers, "oscillation_rate", NO_RATES)
    maps = _maps(records, layers)
    depths = sorted({depth for frame in maps.values() for depth in frame.index}, key=_depth_order)
    roles = [r for r in ROLES if any(r in frame.columns for frame in maps.values())]
    lines = [(m, b, when) for m in study.models for b in study.bits for when in ("mid-run", "end")]
    width = COLUMN if len(study.methods) == 1 else PAGE
    cell = 0.16 if len(depths) > 4 else 0.24
    picture = new_figure(width, 1.3 + len(lines) * (0.2 + cell * len(depths)))
    grid = panels(picture, len(lines), len(study.methods), sharex=True, sharey=True)
    top = max((np.nanmax(f.to_numpy(float)) for f in maps.values() if f.size), default=1.0) or 1.0
    image = None
    for i, (model, bits, when) in enumerate(lines):
        for j, method in enumerate(study.methods):
            known = maps.get((model, bits, when, method), pd.DataFrame())
            frame = known.reindex(index=depths, columns=roles)
            image = _heat(grid[i][j], frame, float(top))
            if i == 0:
                grid[i][j].set_title(broken(records.labels[method], len(study.methods)))
        prefix = f"{model}\n" if len(study.models) > 1 else ""
        grid[i][0].set_ylabel(f"{prefix}{bits}, {when}\nblock")
    _colour_bar(picture, image, grid)
    return Drawn(
        picture,
        "Oscillation rate by block and role of the weight matrix, mean over seeds: at the median "
        "epoch of QAT and at the end of the method's last stage. Grey: the method has no such "
        "matrix (with QKR, query and key are one, qk).",
    )


def _maps(records: Records, layers: pd.DataFrame) -> dict[tuple[str, str, str, str], pd.DataFrame]:
    """Blocks × roles, by model, bits, moment and method."""
    study, found = records.study, {}
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
                    found[model, bits, when, method] = now.pivot_table(
                        values="oscillation_rate", index="depth", columns="role", aggfunc="mean"
                    )
    return found


@cache
def _depth(layer: str) -> str:
    """``blocks.3.mlp.fc1`` is in block 3, ``layers.0.blocks.1.attn.proj`` in 0.1."""
    return ".".join(re.findall(r"(?<=\.)\d+", layer)) or layer


def _depth_order(depth: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in depth.split(".")]


def _heat(ax: Axes, frame: pd.DataFrame, top: float) -> AxesImage:
    values: NDArray[np.float64] = frame.to_numpy(float)
    ax.grid(False)
    ax.set_facecolor("#ececec")
    ax.spines[:].set_visible(False)
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="none")
    ax.set_xticks(range(len(frame.columns)), frame.columns, rotation=90)
    every = 1 if len(frame.index) <= 6 else 2
    ax.set_yticks(range(0, len(frame.index), every), frame.index[::every])
    ax.tick_params(length=0)
    ax.tick_params(axis="x", labelsize=6.5)
    return image


def _colour_bar(picture: Any, image: AxesImage | None, grid: list[list[Axes]]) -> None:
    bar = picture.colorbar(
        image, ax=[ax for row in grid for ax in row], location="right", fraction=0.03, pad=0.01
    )
    bar.set_label("oscillation rate (%)")
    bar.outline.set_visible(False)
