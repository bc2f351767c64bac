"""What figures of several models share: panels, titles, and the baseline."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ofq.report.collect import Records
from ofq.report.figures.style import GREY, add_legend, broken_name, panels
from ofq.report.measures import measures


def draw_models(
    picture: Figure, records: Records, draw: Callable[[Axes, str], None], columns: int
) -> None:
    """Draw the primary number, one panel per model, with a legend below them.

    Args:
        picture: The figure.
        records: The study.
        draw: Draws a model's panel.
        columns: The legend's, at most.
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
    """The title of a panel in a row of panels per bits; the model, if the study has several."""
    study = records.study
    name = f"{broken_name(model, len(study.bits))}\n" if len(study.models) > 1 else ""
    return f"{name}{bits}"


def draw_baseline(ax: Axes, records: Records, model: str) -> None:
    """A dashed line at the full-precision model's mean, if the study has it."""
    values = records.of(records.runs, model=model, method="fp")[measures(records.primary)[0].key]
    if not values.empty:
        ax.axhline(values.mean(), color=GREY, linestyle="--", linewidth=1, label="Full precision")


def caption_of(records: Records, text: str) -> str:
    """A sentence as a caption that tells of the baseline, if the study has it."""
    told = text[0].upper() + text[1:]
    if "fp" in records.runs["method"].to_numpy():
        told += " Dashed line: mean of the full-precision baseline."
    return told
