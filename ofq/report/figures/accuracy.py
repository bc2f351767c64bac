"""Figure of the primary measure by bits and method."""

import pandas as pd
from matplotlib.axes import Axes

from ofq.report.collect import Records
from ofq.report.figures.by_method import draw_by_method, interval_words
from ofq.report.figures.by_model import caption_of, draw_baseline, draw_models, with_baselines
from ofq.report.figures.looks import Look, looks
from ofq.report.figures.registry import Drawn, register_figure
from ofq.report.figures.style import COLUMN, PAGE, draw_interval, legend_height, new_figure
from ofq.report.measures import Measure, measures


@register_figure("accuracy")
def draw(records: Records) -> Drawn:
    """Draw each seed as a dot, with mean and interval beside, one panel per model.

    Bits are on the axis; where the study has one bit-width, the methods are.
    """
    study, measure = records.study, measures(records.primary)[0]
    if len(study.bits) == 1:
        return draw_by_method(records)
    crowd = len(study.bits) * len(study.methods)
    width = COLUMN if crowd <= 8 and len(study.models) == 1 else PAGE
    labels = len(study.methods) + 1  # with the baseline's
    picture = new_figure(width, 2.4 + legend_height(labels, 2))
    columns = 2 if width == COLUMN else 4
    runs = records.runs[records.runs["method"] != "fp"]
    values = with_baselines(records, runs[measure.key])
    draw_models(picture, records, values, lambda ax, model: _panel(ax, records, measure, model),
                columns)  # fmt: skip
    seeds = len(study.seeds)
    caption = (
        f"{measure.name} by bits and method: a faint dot per seed ({seeds}); "
        f"{interval_words(seeds)}."
    )
    return Drawn(picture, caption_of(records, caption))


def _panel(ax: Axes, records: Records, measure: Measure, model: str) -> None:
    study, style = records.study, looks(records.methods)
    for x, bits in enumerate(study.bits):
        methods = [m for m in study.methods if bits in study.bits_of(m)]
        step = 0.8 / len(methods)
        for i, method in enumerate(methods):
            runs = records.of(records.runs, model=model, bits=bits, method=method)
            centre = x + (i - (len(methods) - 1) / 2) * step
            _cell(
                ax, measure, runs, centre, step,
                name=records.labels[method], look=style[method], resplit=records.resplit,
            )  # fmt: skip
    draw_baseline(ax, records, model)
    ax.set_xticks(range(len(study.bits)), study.bits)
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.5, len(study.bits) - 0.5)


def _cell(
    ax: Axes,
    measure: Measure,
    runs: pd.DataFrame,
    x: float,
    step: float,
    *,
    name: str,
    look: Look,
    resplit: float,
) -> None:
    values = runs[measure.key]
    if values.empty:
        return
    summary = measure.over_seeds(values, resplit)
    ax.plot([x - step / 5] * len(values), values, ".", color=look.color, alpha=0.45, markersize=4)
    place = x + step / 8
    draw_interval(ax, place, summary, look.color)
    ax.plot(place, summary.mean, linestyle="none", label=name, **look.marks)
