"""Figure of oscillation over training."""

from matplotlib.axes import Axes

from ofq.report.collect import Records
from ofq.report.figures.by_model import title_of
from ofq.report.figures.registry import NO_RATES, Drawn, register_figure, require
from ofq.report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    add_legend,
    legend_height,
    looks,
    new_figure,
    over_seeds,
    panels,
)

QUANTITIES = {
    "oscillation_rate": "oscillation rate (%)",
    "flips": "flips per 1,000\nweights and step",
}


@register_figure("oscillation_over_training")
def over_training(records: Records) -> Drawn:
    """Draw oscillation rate and flips over epochs, a column per bits."""
    study = records.study
    require(records.metrics, "oscillation_rate", NO_RATES)
    width = COLUMN if len(study.bits) == 1 else PAGE
    columns = 2 if width == COLUMN else 4
    legend = legend_height(len(study.methods), columns)
    picture = new_figure(width, 0.5 + legend + 2.9 * len(study.models))
    grid = panels(picture, 2 * len(study.models), len(study.bits), sharex="col", sharey="row")
    for i, model in enumerate(study.models):
        for j, bits in enumerate(study.bits):
            for k, (quantity, name) in enumerate(QUANTITIES.items()):
                ax = grid[2 * i + k][j]
                _curves(ax, records, quantity, model, bits)
                if k == 0:
                    ax.set_title(title_of(records, model, bits))
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
    """Return whether another method's cell ends where this method's CGA starts."""
    runs = records.of(records.runs, model=model, bits=bits)
    starts = {
        chain.split(" > ")[-2]
        for chain in runs[runs["method"] == method]["chain"]
        if " > " in chain
    }
    return starts <= set(runs["run"]) if starts else False
