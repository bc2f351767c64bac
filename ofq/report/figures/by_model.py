"""Helpers of figures of several models: panels, titles, and the baseline."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ofq.report.collect import Records
from ofq.report.figures.style import GREY, add_legend, broken_name, panels
from ofq.report.measures import measures


def draw_models(
    picture: Figure, records: Records, draw: Callable[[Axes, str], None], columns: int
) -> None:
    """Draw the primary measure, one panel per model, with a legend below them.

    Args:
        picture: The figure.
        records: The study.
        draw: Function that draws a model's panel.
        columns: The most columns of the legend.
    """
    models = records.study.models
    axes = panels(picture, 1, len(models), sharey=True)[0]
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


def draw_baseline(ax: Axes, records: Records, model: str) -> None:
    """Draw a dashed line at the full-precision model's mean, if the study has it."""
    values = records.of(records.runs, model=model, method="fp")[measures(records.primary)[0].key]
    if not values.empty:
        ax.axhline(values.mean(), color=GREY, linestyle="--", linewidth=1, label="Full precision")


def caption_of(records: Records, text: str) -> str:
    """Return a sentence as a caption that mentions the baseline, if the study has it."""
    caption = text[0].upper() + text[1:]
    if "fp" in records.runs["method"].to_numpy():
        caption += " Dashed line: mean of the full-precision baseline."
    return caption
