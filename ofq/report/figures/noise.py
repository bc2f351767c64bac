"""Figure of the accuracy with injected noise, draw by draw."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ofq.report.collect import Records
from ofq.report.figures.by_method import name_rows, row_height
from ofq.report.figures.looks import looks
from ofq.report.figures.registry import Drawn, NothingToDraw, register_figure
from ofq.report.figures.style import COLUMN, GREY, PAGE, new_figure, panels
from ofq.report.noise import draws

_WIDTH = 0.3
"""Half the height of a row over which the draws of a method are distributed."""


@register_figure("noise_injection")
def noise_injection(records: Records) -> Drawn:
    """Draw a dot per draw, its top-1 minus that without noise; one panel per model and bits."""
    found = draws(records)
    if found.empty:
        raise NothingToDraw("no finished run of the study injected noise")
    study = records.study
    places = [(model, bits) for model in study.models for bits in study.bits]
    places = [p for p in places if not records.of(found, model=p[0], bits=p[1]).empty]
    methods = [m for m in study.methods if m in set(found["method"])]
    height = 0.75 + max(0.3, row_height(records, methods)) * len(methods)
    picture = new_figure(PAGE if len(places) > 1 else COLUMN, height)
    axes = panels(picture, 1, len(places), sharey=True)[0]
    for ax, (model, bits) in zip(axes, places, strict=True):
        _panel(ax, records, records.of(found, model=model, bits=bits), methods)
        ax.set_title(f"{model}, {bits}" if len(study.models) > 1 else bits)
        ax.set_xlabel("top-1 with noise − without\n(points)")
    return Drawn(picture, _caption(records, found, methods))


def _panel(ax: Axes, records: Records, found: pd.DataFrame, methods: list[str]) -> None:
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    style = looks(records.methods)
    for y, method in enumerate(methods):
        gains = records.of(found, method=method)["gain"].to_numpy(float)
        if len(gains) == 0:
            continue
        color = style[method].color
        places = y + np.linspace(-_WIDTH, _WIDTH, len(gains))
        ax.plot(gains, places, ".", color=color, alpha=0.45, markersize=4)
        ax.vlines(gains.mean(), y - _WIDTH, y + _WIDTH, color=color, linewidth=2)
    name_rows(ax, records, methods)


def _caption(records: Records, found: pd.DataFrame, methods: list[str]) -> str:
    shares = []
    for bits in records.study.bits:
        for method in methods:
            mine = records.of(found, bits=bits, method=method)
            if len(mine):
                better = 100 * (mine["gain"] > 0).mean()
                worse = 100 * (mine["gain"] < 0).mean()
                shares.append(
                    f"{records.labels[method]} at {bits}: {better:.0f} % better, {worse:.0f} % "
                    f"worse, {mine['changed'].mean():.2g} % of codes changed"
                )
    return (
        "Top-1 with other codes for some weights, less that of the model that training ended on: "
        f"a dot per draw, seeds below one another, a line at the mean. {'; '.join(shares)}. The "
        "best draw is no result: it was chosen on the images that it is measured on. Every draw "
        "is in noise.csv."
    )
