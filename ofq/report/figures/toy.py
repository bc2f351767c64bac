"""Figures of the toy regression: loss, and the paths of single weights and their scale."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ofq.report.collect import Records
from ofq.report.figures.looks import looks
from ofq.report.figures.multiples import (
    BEHIND,
    SENTENCE,
    Facet,
    crowded,
    facets_of,
    small_multiples,
)
from ofq.report.figures.recorded import of_first_bits
from ofq.report.figures.registry import Drawn, register_figure
from ofq.report.figures.style import (
    COLUMN,
    PAGE,
    add_legend,
    broken,
    new_figure,
    over_seeds,
    panels,
)

_LATENT: dict[str, Any] = {"color": "#0072B2"}
_SCALE: dict[str, Any] = {"color": "#009E73", "linestyle": (0, (4, 1.2))}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

ZOOM = 60
"""Number of steps that the lowest panels show."""


@register_figure("loss")
def loss(records: Records) -> Drawn:
    """Draw the loss over steps by method, a column per model and bits.

    With many methods, each has panels of its own (:mod:`ofq.report.figures.multiples`).
    """
    study = records.study
    spread = " Shaded from the lowest to the highest seed." if len(study.seeds) > 1 else ""
    caption = f"Evaluated loss over training, mean over seeds.{spread}"
    facets = facets_of(records, {"loss": "loss"}, study.methods)
    if crowded(facets):
        picture, shown = small_multiples(records, facets, partial(_loss_curve, records), "step")
        _label_powers(list(shown.values()))
        return Drawn(picture, caption + SENTENCE)
    width = COLUMN if len(facets) == 1 else PAGE
    picture = new_figure(width, 2.6)
    axes = panels(picture, 1, len(facets), sharey=True)[0]
    for ax, facet in zip(axes, facets, strict=True):
        for method in facet.methods:
            _loss_curve(records, ax, facet, method, False)
        ax.set_title(f"{facet.model}, {facet.bits}" if len(study.models) > 1 else facet.bits)
        ax.set_xlabel("step")
    axes[0].set_ylabel("loss")
    _label_powers(axes)
    add_legend(picture, 2 if width == COLUMN else 4)
    return Drawn(picture, caption)


def _loss_curve(records: Records, ax: Axes, facet: Facet, method: str, behind: bool) -> None:
    rows = records.of(records.metrics, model=facet.model, bits=facet.bits, method=method)
    if behind:
        ax.plot(rows.groupby("step")["loss"].mean(), **BEHIND)
    else:
        look = looks(records.methods)[method]
        over_seeds(ax, rows, "step", "loss", records.labels[method], look)


def _label_powers(axes: Sequence[Axes]) -> None:
    """Use a logarithmic scale, with powers of ten as plain text, unless within a decade."""
    values = np.concatenate([line.get_ydata() for ax in axes for line in ax.get_lines()])
    for ax in axes:
        if np.nanmax(values) >= 10 * np.nanmin(values):
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(_power_of_ten)
            ax.yaxis.set_minor_formatter(NullFormatter())


def _power_of_ten(value: float, _: float) -> str:
    return "10" + f"{math.log10(value):.0f}".translate(_RAISED)


@register_figure("trajectories")
def trajectories(records: Records) -> Drawn:
    """Draw one weight, its quantized value and its scale over steps: a column per method."""
    study = records.study
    model, bits, rows = of_first_bits(records, "trajectories", "weights")
    seed, weight, last = _busiest(rows)
    rows = records.of(rows, seed=seed)
    columns = len(study.methods)
    width = COLUMN if columns == 1 else PAGE
    picture = new_figure(width, 5.2)
    grid = panels(picture, 3, columns, sharey="row")
    for j, method in enumerate(study.methods):
        path = records.of(rows, method=method, weight=weight).sort_values("step")
        _weight(grid[0][j], path)
        grid[1][j].plot(path["step"], path["scale"], **_SCALE, linewidth=0.9)
        _together(grid[2][j], path[path["step"].between(last - ZOOM + 1, last)])
        grid[0][j].set_title(broken(records.labels[method], len(study.methods)))
        grid[2][j].set_xlabel("step")
    for ax, name in zip(
        (row[0] for row in grid), ("weight", "scale", "change (% of scale)"), strict=True
    ):
        ax.set_ylabel(name)
    _legend(picture, grid)
    return Drawn(
        picture,
        f"Weight {weight} of {model} at {bits}, seed {seed}: of all recorded weights and seeds the "
        "one whose code changes most often in the second half, over all methods. Above: latent "
        f"weight and quantized value. Middle: its scale. Below: both over the {ZOOM} steps with "
        "the most changes, each as its distance from its mean there, in percent of the mean "
        "scale; where both swing, weight and scale oscillate together.",
    )


def _busiest(rows: pd.DataFrame) -> tuple[int, int, int]:
    """Find the seed and weight whose code changes most often in the second half of training.

    Returns:
        Seed, weight, and the last step of the window in which it changes most.
    """
    settled = rows[rows["step"] > rows["step"].max() / 2].sort_values("step")
    runs = settled.groupby(["method", "seed", "weight"])["code"]
    settled = settled.assign(changed=runs.diff().fillna(0) != 0)
    totals = settled.groupby(["seed", "weight"])["changed"].sum()
    seed, weight = totals.sort_values(ascending=False, kind="stable").index[0]
    chosen = settled[(settled["seed"] == seed) & (settled["weight"] == weight)]
    steps = chosen.groupby("step")["changed"].sum().rolling(ZOOM, min_periods=1).sum()
    return int(seed), int(weight), int(steps.idxmax())


def _weight(ax: Axes, path: pd.DataFrame) -> None:
    ax.step(
        path["step"],
        path["quantized"],
        where="post",
        color="#E69F00",
        linewidth=0.8,
        label="quantized value",
    )
    ax.plot(path["step"], path["latent"], **_LATENT, linewidth=1.1, label="latent weight")


def _together(ax: Axes, path: pd.DataFrame) -> None:
    unit = path["scale"].mean() / 100
    for name, look in {"latent": _LATENT, "scale": _SCALE}.items():
        moved = (path[name] - path[name].mean()) / unit
        ax.plot(path["step"], moved, **look, linewidth=1.1, label=name)


def _legend(picture: Figure, grid: list[list[Axes]]) -> None:
    handles, labels = grid[0][0].get_legend_handles_labels()
    scale, _ = grid[2][0].get_legend_handles_labels()
    picture.legend(
        [*handles, scale[-1]],
        [*labels, "scale"],
        loc="outside lower center",
        ncols=3,
    )
