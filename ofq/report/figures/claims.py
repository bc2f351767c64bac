"""Forest plot of the claims that a study tests."""

import math
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes

from ofq.report.claims import judge_claims
from ofq.report.collect import Records
from ofq.report.figures.registry import Drawn, NothingToDraw, register_figure
from ofq.report.figures.style import (
    GREY,
    PAGE,
    add_legend,
    draw_interval,
    fit_to_data,
    new_figure,
)
from ofq.report.measures import MINUS
from ofq.report.statistics import Summary

_COLORS = {
    "holds": "#117733",
    "contradicted": "#aa3377",
    "no difference": "#4477aa",
    "undecided": GREY,
}
_ROW = 0.42  # inches
_LINEAR = 2.0  # margins to which the axis is linear
_BEYOND = 1.3  # factor by which the axis goes on beyond the numbers


@register_figure("claims")
def forest(records: Records) -> Drawn:
    """Draw each claim's number with its interval, in units of its margin, its control below."""
    rows = judge_claims(records)
    rows = rows[(rows["margin"] > 0) & rows["low"].notna()]
    if rows.empty:
        raise NothingToDraw("the study tests no claim, or has no interval for any")
    picture = new_figure(PAGE, 1.1 + _ROW * len(rows))
    axes = picture.add_subplot()
    axes.axvspan(-1, 1, color="#eeeeee", zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    numbers = [rows[key] / rows["margin"] for key in ("difference", "control_difference")]
    reach = _BEYOND * pd.concat(numbers)
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=1)
    fit_to_data([axes], [-_BEYOND * _LINEAR, _BEYOND * _LINEAR, *reach], upright=False, room=0)
    _ticks(axes)
    shown: set[str] = set()
    for place, row in enumerate(rows.to_dict("records")):
        names = [row["verdict"], "matched control"]
        for i, (name, prefix) in enumerate(zip(names, ("", "control_"), strict=True)):
            mean, low, high = (
                row[f"{prefix}{key}"] / row["margin"] for key in ("difference", "low", "high")
            )
            if math.isnan(mean):
                continue
            color = _COLORS[row["verdict"]] if i == 0 else "#999999"
            summary = Summary(row["seeds"], mean, math.nan, low, high)
            draw_interval(axes, place + 0.25 * i, summary, color, upright=False)
            axes.plot(
                mean,
                place + 0.25 * i,
                "os"[i],
                markersize=4 - i,
                color=color,
                markerfacecolor=None if i == 0 else "white",
                label=None if name in shown else name,
            )
            shown.add(name)
    axes.set_yticks(range(len(rows)), [fill(text, 44) for text in rows["text"]])
    axes.set_ylim(len(rows) - 0.4, -0.5)
    axes.set_xlabel("difference in units of the claim's margin (linear to ±2, then logarithmic)")
    add_legend(picture, 4)
    caption = (
        "Each claim's number with its 95 % interval, divided by the margin that the claim states "
        "(grey: within the margin), cut with an arrow at the axis's end, none over one or two "
        "seeds; below it, hollow, the matched control."
    )
    return Drawn(picture, caption)


def _ticks(axes: Axes) -> None:
    """Label an axis of margins in plain numbers, at powers of ten and within its linear part."""
    low, high = axes.get_xlim()
    decades = [10**power for power in range(1, 10)]
    places = [sign * tick for tick in (1, 2, *decades) for sign in (-1, 1)]
    known = sorted(place for place in (0, *places) if low <= place <= high)
    axes.set_xticks(known, [f"{place:,}".replace("-", MINUS) for place in known])
    axes.minorticks_off()
