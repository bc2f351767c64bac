"""Helpers of figures of several models: panels, titles, and the baseline."""

import math
from collections.abc import Callable, Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ofq.report.collect import Records
from ofq.report.figures.style import GREY, add_legend, broken_name, fit_to_data, panels
from ofq.report.measures import measures


def draw_models(
    picture: Figure,
    records: Records,
    values: ArrayLike,
    draw: Callable[[Axes, str], None],
    columns: int,
) -> None:
    """Draw the primary measure, one panel per model, with a legend below them.

    Args:
        picture: The figure.
        records: The study.
        values: All values that the panels show, which set the axes' limits.
        draw: Function that draws a model's panel, whose limits are set already.
        columns: The most columns of the legend.
    """
    models = records.study.models
    axes = panels(picture, 1, len(models), sharey=True)[0]
    fit_to_data(axes, values)
    for ax, model in zip(axes, models, strict=True):
        draw(ax, model)
        if len(models) > 1:
            ax.set_title(broken_name(model, len(models)))
    axes[0].set_ylabel(measures(records.primary)[0].heading)
    add_legend(picture, columns)


def title_of(records: Records, model: str, bits: str) -> str:
    """Return the title of a panel in a row of panels per bits, with the model if several."""
    study = records.study
    name = f"{broken_name(model, len(study.bits))}\n" if len(study.models) > 1 else ""
    return f"{name}{bits}"


def baseline(records: Records, model: str) -> float:
    """Return the full-precision model's mean of the primary measure; NaN without one."""
    values = records.of(records.runs, model=model, method="fp")[measures(records.primary)[0].key]
    return float(values.mean()) if len(values) else math.nan


def with_baselines(records: Records, values: Iterable[float]) -> list[float]:
    """Return values and the baselines' of all the study's models."""
    return [*values, *(baseline(records, model) for model in records.study.models)]


def draw_baseline(ax: Axes, records: Records, model: str, upright: bool = True) -> None:
    """Draw a dashed line at the full-precision model's mean, if the study has it.

    Args:
        ax: The axes.
        records: The study.
        model: The model.
        upright: Whether the measure's axis is the vertical one.
    """
    mean = baseline(records, model)
    if not math.isnan(mean):
        draw = ax.axhline if upright else ax.axvline
        draw(mean, color=GREY, linestyle="--", linewidth=1, label="Full precision")


def caption_of(records: Records, text: str) -> str:
    """Return a sentence as a caption that mentions the baseline, if the study has it."""
    caption = text[0].upper() + text[1:]
    if "fp" in records.runs["method"].to_numpy():
        caption += " Dashed line: mean of the full-precision baseline."
    return caption
