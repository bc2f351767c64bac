"""Dot plots with a row per method, whose names stand on the axis."""

from matplotlib.axes import Axes

from ofq.report.collect import Records
from ofq.report.figures.by_model import baseline, caption_of, draw_baseline
from ofq.report.figures.looks import Look, looks
from ofq.report.figures.registry import Drawn
from ofq.report.figures.style import (
    COLUMN,
    ENOUGH_SEEDS,
    PAGE,
    add_legend,
    broken_name,
    draw_interval,
    fit_to_data,
    name_lines,
    new_figure,
    panels,
)
from ofq.report.measures import Measure, measures

_APART = 0.16  # of dots and mean from the middle of their row


def row_height(records: Records, methods: list[str]) -> float:
    """Return the height in inches of a row that holds the longest of the methods' names."""
    lines = max(name_lines(records.labels[method]).count("\n") + 1 for method in methods)
    return max(0.2, 0.04 + 0.125 * lines)


def name_rows(ax: Axes, records: Records, methods: list[str]) -> None:
    """Put the methods' names on the vertical axis, the first on top."""
    ax.set_yticks(range(len(methods)), [name_lines(records.labels[m]) for m in methods])
    ax.set_ylim(len(methods) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")


def interval_words(seeds: int) -> str:
    """Return what a caption says of the marks over so many seeds."""
    if seeds >= ENOUGH_SEEDS:
        return "mean and 95 % t interval, an arrow where it goes on beyond the axis"
    few = "one seed" if seeds == 1 else f"{seeds} seeds"
    return f"{'mean and ' if seeds > 1 else ''}no interval, as {few} can't tell one"


def draw_by_method(records: Records) -> Drawn:
    """Draw the primary measure of a study of one bit-width, a row per method."""
    study, measure = records.study, measures(records.primary)[0]
    width = COLUMN if len(study.models) == 1 else PAGE
    height = 0.75 + row_height(records, study.methods) * len(study.methods)
    picture = new_figure(width, height)
    for ax, model in zip(
        panels(picture, 1, len(study.models), sharey=True)[0], study.models, strict=True
    ):
        _panel(ax, records, measure, model)
        ax.set_xlabel(measure.heading)
        if len(study.models) > 1:
            ax.set_title(broken_name(model, len(study.models) + 1))
    if "fp" in records.runs["method"].to_numpy():
        add_legend(picture, 2)
    seeds = len(study.seeds)
    bits = study.bits[0]
    caption = f"{measure.name} at {bits}: a faint dot per seed ({seeds}); {interval_words(seeds)}."
    return Drawn(picture, caption_of(records, caption))


def _panel(ax: Axes, records: Records, measure: Measure, model: str) -> None:
    study, style = records.study, looks(records.methods)
    runs = records.of(records.runs, model=model)
    runs = runs[runs["method"] != "fp"]
    fit_to_data([ax], [*runs[measure.key], baseline(records, model)], upright=False)
    draw_baseline(ax, records, model, upright=False)
    for y, method in enumerate(study.methods):
        values = records.of(runs, method=method)[measure.key].to_list()
        if values:
            _row(ax, y, values, style[method])
            summary = measure.over_seeds(values, records.resplit)
            draw_interval(ax, y + _APART, summary, style[method].color, upright=False)
    name_rows(ax, records, study.methods)


def _row(ax: Axes, y: int, values: list[float], look: Look) -> None:
    places = [y - _APART] * len(values)
    ax.plot(values, places, ".", color=look.color, alpha=0.45, markersize=4)
    ax.plot(sum(values) / len(values), y + _APART, **look.marks)
