"""Figures of changes between steps: gradient signs, and joint flips of query and key."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ofq.report.collect import Records
from ofq.report.figures.looks import Look, looks
from ofq.report.figures.multiples import (
    BEHIND,
    MOST,
    ROOM,
    SENTENCE,
    Facet,
    crowded,
    facets_of,
    small_multiples,
)
from ofq.report.figures.oscillation import shares_qat
from ofq.report.figures.recorded import of_first_model
from ofq.report.figures.registry import Drawn, register_figure
from ofq.report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    add_legend,
    broken,
    fit_to_data,
    legend_height,
    new_figure,
    panels,
)

SPANS = 5
"""Number of equal spans of a stage; the co-flip ratio pools the epochs of each."""

ENOUGH = 5
"""Expected joint flips below which a ratio isn't shown: it would be noise."""


QUANTITIES = {
    "ratio": "joint flips,\nobserved / expected",
    "rate": "flips per 1,000\nweights and step",
}

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
    """Draw joint flips of query and key, and the flip rate of both: a column per bits.

    With many methods, each has panels of its own (:mod:`ofq.report.figures.multiples`).
    """
    study = records.study
    model, recorded = of_first_model(records, "joint_flips", "sample")
    bits = [b for b in study.bits if b in set(recorded["bits"])]
    facets = [
        facet
        for facet in facets_of(records, QUANTITIES, study.methods)
        if facet.model == model and facet.bits in bits
    ]
    draw = partial(_flip_curve, records, recorded)
    if crowded(facets):
        picture, shown = small_multiples(records, facets, draw, "epoch")
        for facet in facets:
            _finish([ax for (of, _), ax in shown.items() if of == facet], facet.quantity)
        return Drawn(picture, _flips_caption(model) + SENTENCE)
    width = COLUMN if len(bits) == 1 else PAGE
    columns = 2 if width == COLUMN else 4
    picture = new_figure(width, 3.9 + legend_height(len(study.methods), columns))
    grid = panels(picture, 2, len(bits), sharex="col")
    for number, facet in enumerate(facets):
        column, row = divmod(number, len(QUANTITIES))
        for method in facet.methods:
            draw(grid[row][column], facet, method, False)
    for (above, below), name in zip(zip(*grid, strict=True), bits, strict=True):
        above.set_title(name)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("epoch")
    for axes, (quantity, name) in zip(grid, QUANTITIES.items(), strict=True):
        axes[0].set_ylabel(name)
        _finish(axes, quantity)
    add_legend(picture, columns)
    return Drawn(picture, _flips_caption(model))


def _finish(axes: list[Axes], quantity: str) -> None:
    """Set limits by ratios, not by their intervals, with a line at independence; rates begin at 0.

    Args:
        axes: The panels that share limits, with all their curves.
        quantity: What they show: ``ratio`` or ``rate``.
    """
    if quantity == "rate":
        for ax in axes:
            ax.set_ylim(bottom=0)
        return
    ratios = [np.asarray(line.get_ydata(), float) for ax in axes for line in ax.get_lines()]
    fit_to_data(axes, np.concatenate([[1.0], *ratios]), room=ROOM)
    for ax in axes:
        ax.axhline(1, color=GREY, linewidth=0.8, zorder=0.8)


def _flips_caption(model: str) -> str:
    return (
        f"Query and key of {model}, flipping together. First: pairs of a weight of W_q and one of "
        "W_k, of the same channel of a head, that flip in the same step, over their number were "
        f"query and key independent; over all layers and seeds, in {SPANS} spans of a stage, with "
        f"95 % Poisson intervals, where at least {ENOUGH} are expected. Dashes: the same for "
        "channels of different heads, which shows what moves all weights at once. Then: how often "
        "weights of query and key flip. With QKR they are not quantized by themselves; their codes "
        "are those that StatsQ would give them."
    )


def _flip_curve(
    records: Records, recorded: pd.DataFrame, ax: Axes, facet: Facet, method: str, behind: bool
) -> None:
    rows = records.of(recorded, model=facet.model, bits=facet.bits, method=method)
    if shares_qat(records, facet.model, facet.bits, method):
        rows = rows[rows["stage"] == "cga"]
    look = looks(records.methods)[method]
    if behind:
        if facet.quantity == "rate":
            ax.plot(_rates(rows), **BEHIND)
    elif facet.quantity == "rate":
        rates = _rates(rows)
        ax.plot(rates, label=records.labels[method], markevery=max(1, len(rates) // 6),
                linestyle=look.linestyle, **look.marks)  # fmt: skip
    else:
        methods = facet.methods
        alone = len(methods) > MOST
        place = 0.5 if alone else (methods.index(method) + 0.5) / len(methods)
        _ratios(ax, rows, look, place)


def _ratios(ax: Axes, rows: pd.DataFrame, look: Look, place: float) -> None:
    """Draw ratios of one method, at its place (0 to 1) in each span."""
    spans = [_spans(stage) for _, stage in rows.groupby("stage", observed=True)]
    drawn = pd.concat(spans) if spans else pd.DataFrame()
    if drawn.empty:
        return
    places = drawn["begin"] + drawn["length"] * (0.1 + 0.8 * place)
    apart = drawn["length"] * 0.05
    dash = {"color": look.color, "marker": "_", "markersize": 5}
    for suffix, marks, side in (("", look.marks, -1), ("_strangers", dash, 1)):
        joint, expected = drawn[f"joint{suffix}"], drawn[f"expected{suffix}"]
        shown = expected >= ENOUGH
        x, ratio = (places + side * apart)[shown], (joint / expected)[shown]
        half = (1.96 * np.sqrt(joint) / expected)[shown]
        ax.plot(x, ratio, linestyle="none", **marks)
        ax.vlines(x, ratio - half, ratio + half, color=look.color, linewidth=0.8)


def _spans(stage: pd.DataFrame) -> pd.DataFrame:
    """Return sums over the spans of one stage, with each span's begin and length in epochs."""
    first, epochs = stage["epoch"].min(), stage["epoch"] - stage["epoch"].min()
    length = (epochs.max() + 1) / SPANS
    span = (epochs * SPANS // (epochs.max() + 1)).rename("span")
    sums = stage.groupby(span).sum(numeric_only=True).reset_index()
    return sums.assign(begin=first - 0.5 + length * sums["span"], length=length)


def _rates(rows: pd.DataFrame) -> pd.Series:
    """Return flips of query and key per 1,000 weights and step, by epoch."""
    checks = 2 * rows["weights"] * rows["steps"]
    sums = rows.assign(flips=rows["flips_q"] + rows["flips_k"], checks=checks)
    by_epoch = sums.groupby("epoch")[["flips", "checks"]].sum()
    return 1000 * by_epoch["flips"] / by_epoch["checks"]
