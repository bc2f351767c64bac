"""Figure of oscillation over training."""

from functools import partial

import numpy as np
from matplotlib.axes import Axes

from ofq.report.collect import Records
from ofq.report.figures.by_model import title_of
from ofq.report.figures.looks import looks
from ofq.report.figures.multiples import (
    BEHIND,
    SENTENCE,
    Facet,
    crowded,
    facets_of,
    small_multiples,
)
from ofq.report.figures.registry import NO_RATES, Drawn, register_figure, require
from ofq.report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    add_legend,
    legend_height,
    new_figure,
    over_seeds,
    panels,
)

QUANTITIES = {
    "oscillation_rate": "oscillation rate (%)",
    "flips": "flips per 1,000\nweights and step",
}

_END = "_end of QAT"  # a label that legends leave out


@register_figure("oscillation_over_training")
def over_training(records: Records) -> Drawn:
    """Draw oscillation rate and flips over epochs, a column per bits.

    With many methods, each has panels of its own (:mod:`ofq.report.figures.multiples`).
    """
    study = records.study
    require(records.metrics, "oscillation_rate", NO_RATES)
    facets = facets_of(records, QUANTITIES, study.methods)
    if crowded(facets):
        picture, shown = small_multiples(records, facets, partial(_curve, records), "epoch")
        for ax in shown.values():
            ax.set_ylim(bottom=0)
        return Drawn(picture, _caption(records) + SENTENCE)
    width = COLUMN if len(study.bits) == 1 else PAGE
    columns = 2 if width == COLUMN else 4
    legend = legend_height(len(study.methods), columns)
    picture = new_figure(width, 0.5 + legend + 2.9 * len(study.models))
    # each bit-width on its own scale: with more bits weights oscillate several times as much
    grid = panels(picture, 2 * len(study.models), len(study.bits), sharex="col")
    for number, facet in enumerate(facets):
        place, quantity = divmod(number, len(QUANTITIES))
        model, column = divmod(place, len(study.bits))
        ax = grid[2 * model + quantity][column]
        for method in facet.methods:
            _curve(records, ax, facet, method, False)
        if quantity == 0:
            ax.set_title(title_of(records, facet.model, facet.bits))
        if column == 0:
            ax.set_ylabel(facet.name)
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    for ax in (ax for row in grid for ax in row):
        ax.set_ylim(bottom=0)
    add_legend(picture, columns)
    return Drawn(picture, _caption(records))


def _caption(records: Records) -> str:
    text = "Oscillation rate and flips over training: mean over seeds"
    text += ", shaded from the lowest to the highest seed" if len(records.study.seeds) > 1 else ""
    text += "; each bit-width has its own scale." if len(records.study.bits) > 1 else "."
    if (records.metrics["stage"] == "cga").any():
        text += (
            " Dotted line: QAT ends and CGA begins. A method with CGA whose QAT runs another "
            "method shares is drawn from there on."
        )
    return text


def _curve(records: Records, ax: Axes, facet: Facet, method: str, behind: bool) -> None:
    rows = records.of(records.metrics, model=facet.model, bits=facet.bits, method=method)
    ends = rows[rows["stage"] == "qat"]["epoch"].max()
    if shares_qat(records, facet.model, facet.bits, method):
        rows = rows[rows["epoch"] >= ends]
    if behind:
        ax.plot(
            rows.dropna(subset=[facet.quantity]).groupby("epoch")[facet.quantity].mean(), **BEHIND
        )
        return
    look = looks(records.methods)[method]
    over_seeds(ax, rows, "epoch", facet.quantity, records.labels[method], look)
    if (rows["stage"] == "cga").any() and ends not in _marked(ax):
        ax.axvline(ends, color=GREY, linestyle=":", linewidth=1, label=_END)
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


def _marked(ax: Axes) -> set[float]:
    """Return the epochs at which a panel says already that QAT ends."""
    return {
        float(np.ravel(line.get_xdata())[0]) for line in ax.get_lines() if line.get_label() == _END
    }


def shares_qat(records: Records, model: str, bits: str, method: str) -> bool:
    """Return whether another method's cell ends where this method's CGA starts."""
    runs = records.of(records.runs, model=model, bits=bits)
    starts = {
        chain.split(" > ")[-2]
        for chain in runs[runs["method"] == method]["chain"]
        if " > " in chain
    }
    return starts <= set(runs["run"]) if starts else False
