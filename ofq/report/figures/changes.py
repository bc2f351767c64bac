"""Figures of changes between steps: gradient signs, and joint flips of query and key."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ofq.report.collect import Records
from ofq.report.figures.oscillation import shares_qat
from ofq.report.figures.recorded import of_first_model
from ofq.report.figures.registry import Drawn, register_figure
from ofq.report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    Look,
    add_legend,
    broken,
    legend_height,
    looks,
    new_figure,
    panels,
)

SPANS = 5
"""Number of equal spans of a stage; the co-flip ratio pools the epochs of each."""

ENOUGH = 5
"""Expected joint flips below which a ratio isn't shown: it would be noise."""


PAIRS = 400
"""Pairs of gradients below which their share isn't shown: its 95 % interval exceeds ±5 points."""


@register_figure("gradient_sign_changes")
def gradient_sign_changes(records: Records) -> Drawn:
    """Draw the share of gradients that change sign, by boundary range: a column per method."""
    study = records.study
    model, recorded = of_first_model(records, "sign_changes", "sample")
    bits = [b for b in study.bits if b in set(recorded["bits"])]
    picture = new_figure(COLUMN if len(study.methods) == 1 else PAGE, 1.1 + 1.5 * len(bits))
    grid = panels(picture, len(bits), len(study.methods), sharey="row", sharex="col")
    for axes, name in zip(grid, bits, strict=True):
        for ax, method in zip(axes, study.methods, strict=True):
            rows = records.of(recorded, bits=name, method=method)
            _sign_lines(ax, rows)
            if (rows["stage"] == "cga").any():
                end = rows.loc[rows["stage"] == "qat", "epoch"].max()
                ax.axvline(end, color=GREY, linestyle=":", linewidth=1)
            if axes is grid[0]:
                ax.set_title(broken(records.labels[method], len(study.methods)))
        axes[0].set_ylabel(f"{name}\nsign changes (%)")
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    add_legend(picture, 6)
    return Drawn(
        picture,
        f"How often the gradient of a weight of {model} changes its sign from one step to the "
        "next, for weights within a boundary range of a rounding threshold and for all: percent of "
        "the steps in an epoch, over a fixed sample of each weight matrix and all seeds, where "
        f"that is of at least {PAIRS} pairs of gradients. "
        "Query and key have no gradients of their own with QKR, and are left out there. Dotted "
        "line: QAT ends and CGA begins.",
    )


def _sign_lines(ax: Axes, rows: pd.DataFrame) -> None:
    counts = rows.assign(boundary_range=rows["boundary_range"].fillna(np.inf))
    sums = counts.groupby(["boundary_range", "epoch"])[["changes", "pairs"]].sum()
    enough = sums["pairs"] >= PAIRS
    shares = (100 * sums["changes"] / sums["pairs"]).where(enough).unstack("epoch")
    colours = colormaps["viridis"](np.linspace(0.9, 0.1, max(1, len(shares) - 1)))
    for number, (width, line) in enumerate(shares.iterrows()):
        if np.isinf(width):  # type: ignore[call-overload]
            ax.plot(line.index, line, color="black", linestyle=(0, (4, 1.2)), label="all weights")
        else:
            ax.plot(line.index, line, color=colours[number], linewidth=1, label=f"BR {width:g}")


@register_figure("joint_flips")
def joint_flips(records: Records) -> Drawn:
    """Draw joint flips of query and key, and the flip rate of both: a column per bits."""
    study, style = records.study, looks(records.study.methods)
    model, recorded = of_first_model(records, "joint_flips", "sample")
    bits = [b for b in study.bits if b in set(recorded["bits"])]
    width = COLUMN if len(bits) == 1 else PAGE
    columns = 2 if width == COLUMN else 4
    picture = new_figure(width, 3.9 + legend_height(len(study.methods), columns))
    grid = panels(picture, 2, len(bits), sharex="col", sharey="row")
    for (above, below), name in zip(zip(*grid, strict=True), bits, strict=True):
        for number, method in enumerate(study.methods):
            rows = records.of(recorded, bits=name, method=method)
            if shares_qat(records, model, name, method):
                rows = rows[rows["stage"] == "cga"]
            _ratios(above, rows, style[method], (number + 0.5) / len(study.methods))
            _rates(below, rows, style[method], records.labels[method])
        above.axhline(1, color=GREY, linewidth=0.8)
        above.set_title(name)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("epoch")
    grid[0][0].set_ylabel("joint flips,\nobserved / expected")
    grid[1][0].set_ylabel("flips per 1,000\nweights and step")
    grid[1][0].set_ylim(bottom=0)
    add_legend(picture, columns)
    return Drawn(
        picture,
        f"Query and key of {model}, flipping together. Above: pairs of a weight of W_q and one of "
        "W_k, of the same channel of a head, that flip in the same step, over their number were "
        f"query and key independent; over all layers and seeds, in {SPANS} spans of a stage, with "
        f"95 % Poisson intervals, where at least {ENOUGH} are expected. Hollow: the same for "
        "channels of different heads, which shows what moves all weights at once. Below: how often "
        "weights of query and key flip. With QKR they are not quantized by themselves; their codes "
        "are those that StatsQ would give them.",
    )


def _ratios(ax: Axes, rows: pd.DataFrame, look: Look, place: float) -> None:
    """Draw ratios of one method, at its place (0 to 1) in each span."""
    for _, stage in rows.groupby("stage"):
        epochs = stage["epoch"] - stage["epoch"].min()
        span = (epochs * SPANS // (epochs.max() + 1)).rename("span")
        sums = stage.groupby(span).sum(numeric_only=True)
        length = (epochs.max() + 1) / SPANS
        begins = stage["epoch"].min() - 0.5 + length * sums.index.to_numpy()
        for suffix, fill, shift in (("", look.color, -0.05), ("_strangers", "white", 0.05)):
            joint, expected = sums[f"joint{suffix}"], sums[f"expected{suffix}"]
            shown = expected >= ENOUGH
            ax.errorbar(
                (begins + length * (0.1 + 0.8 * place + shift))[shown],
                (joint / expected)[shown],
                (1.96 * np.sqrt(joint) / expected)[shown],
                marker=look.marker, color=look.color, markerfacecolor=fill, elinewidth=0.8,
                linestyle="none",
            )  # fmt: skip


def _rates(ax: Axes, rows: pd.DataFrame, look: Look, label: str) -> None:
    checks = 2 * rows["weights"] * rows["steps"]
    sums = rows.assign(flips=rows["flips_q"] + rows["flips_k"], checks=checks)
    by_epoch = sums.groupby("epoch")[["flips", "checks"]].sum()
    every = max(1, len(by_epoch) // 6)
    rate = 1000 * by_epoch["flips"] / by_epoch["checks"]
    ax.plot(rate, marker=look.marker, markevery=every, label=label, **look.line)
