"""Forest plot of the claims that a study tests."""

import math
from textwrap import fill

from ofq.report.claims import judge_claims
from ofq.report.collect import Records
from ofq.report.figures.registry import Drawn, NothingToDraw, register_figure
from ofq.report.figures.style import GREY, PAGE, add_legend, new_figure

_COLORS = {
    "holds": "#117733",
    "contradicted": "#aa3377",
    "no difference": "#4477aa",
    "undecided": GREY,
}
_ROW = 0.42  # inches


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
    shown: set[str] = set()
    for place, row in enumerate(rows.to_dict("records")):
        names = [row["verdict"], "matched control"]
        sides = [
            ("difference", "low", "high"),
            ("control_difference", "control_low", "control_high"),
        ]
        for i, (name, keys) in enumerate(zip(names, sides, strict=True)):
            mean, low, high = (row[key] / row["margin"] for key in keys)
            if math.isnan(low):
                continue
            axes.errorbar(
                mean,
                place + 0.25 * i,
                xerr=[[mean - low], [high - mean]],
                fmt="os"[i],
                markersize=4 - i,
                color=_COLORS[row["verdict"]] if i == 0 else "#999999",
                markerfacecolor=None if i == 0 else "white",
                capsize=2,
                elinewidth=1,
                label=None if name in shown else name,
            )
            shown.add(name)
    axes.set_yticks(range(len(rows)), [fill(text, 44) for text in rows["text"]])
    axes.set_ylim(len(rows) - 0.4, -0.5)
    axes.set_xscale("symlog", linthresh=2, linscale=1)
    axes.set_xlabel("difference in units of the claim's margin (linear to ±2, then logarithmic)")
    add_legend(picture, 4)
    caption = (
        "each claim's number with its 95 % interval, divided by the margin that the claim states "
        "(grey: within the margin); below it, hollow, the matched control."
    )
    return Drawn(picture, caption)
