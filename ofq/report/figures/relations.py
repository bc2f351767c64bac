"""Figures of one quantity against another: accuracy, bits, oscillation, and frozen weights."""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from scipy import stats

from ofq.report.collect import Records
from ofq.report.figures.by_method import draw_by_method, interval_words
from ofq.report.figures.by_model import (
    caption_of,
    draw_baseline,
    draw_models,
    title_of,
    with_baselines,
)
from ofq.report.figures.looks import RELEASED_RANGE, bits_looks, looks
from ofq.report.figures.multiples import (
    BEHIND,
    MOST,
    ROOM,
    SENTENCE,
    Facet,
    crowded,
    facets_of,
    small_multiples,
)
from ofq.report.figures.recorded import boundary_ranges, range_name
from ofq.report.figures.registry import NO_RATES, Drawn, NothingToDraw, register_figure, require
from ofq.report.figures.style import (
    COLUMN,
    PAGE,
    add_legend,
    draw_interval,
    fit_to_data,
    legend_height,
    new_figure,
    over_seeds,
    panels,
)
from ofq.report.measures import FLIPS_MID, OSCILLATION_MID, Measure, measures
from ofq.values import parse_bits


@register_figure("accuracy_against_bits")
def against_bits(records: Records) -> Drawn:
    """Draw a line per method over the weights' bits, one panel per model.

    With many methods, each has panels of its own (:mod:`ofq.report.figures.multiples`); with one
    bit-width there is no axis of bits, and each method has a row instead.

    Raises:
        NothingToDraw: With one bit-width the study's figure ``accuracy`` would be the same.
    """
    study, measure = records.study, measures(records.primary)[0]
    if len(study.bits) == 1:
        if "accuracy" in study.figures:
            raise NothingToDraw("the study has one bit-width, so figure 'accuracy' shows it all")
        return draw_by_method(records)
    draw = partial(_bit_line, records, measure)
    means = records.runs[records.runs["method"] != "fp"].groupby(["model", "bits", "method"])
    values = with_baselines(records, means[measure.key].mean())
    facets = [
        Facet(m, "", measure.key, measure.heading, tuple(study.methods)) for m in study.models
    ]
    caption = f"{measure.name} against bits: {interval_words(len(study.seeds))}."
    if crowded(facets):
        picture, shown = small_multiples(records, facets, draw, "", ticks=0)
        fit_to_data(list(shown.values()), values, room=ROOM)
        for (facet, _), ax in shown.items():
            _bits_axis(ax, records, facet.model)
        return Drawn(picture, caption_of(records, caption) + SENTENCE)
    width = COLUMN if len(study.models) == 1 else PAGE
    columns = 2 if width == COLUMN else 4
    picture = new_figure(width, 2.3 + legend_height(len(study.methods), columns))
    by_model = {facet.model: facet for facet in facets}

    def panel(ax: Axes, model: str) -> None:
        for method in study.methods:
            draw(ax, by_model[model], method, False)
        _bits_axis(ax, records, model)

    draw_models(picture, records, values, panel, columns)
    return Drawn(picture, caption_of(records, caption))


def _bits_axis(ax: Axes, records: Records, model: str) -> None:
    draw_baseline(ax, records, model)
    places = sorted(records.study.bits, key=parse_bits)
    ax.set_xticks(range(len(places)), places)
    ax.set_xlim(-0.4, len(places) - 0.6)


def _bit_line(
    records: Records, measure: Measure, ax: Axes, facet: Facet, method: str, behind: bool
) -> None:
    study, places = records.study, sorted(records.study.bits, key=parse_bits)
    runs = records.of(records.runs, model=facet.model, method=method)
    cells = {
        str(bits): measure.over_seeds(mine[measure.key], records.resplit)
        for bits, mine in runs.groupby("bits")
    }
    known = sorted(cells, key=parse_bits)
    means = [cells[bits].mean for bits in known]
    if behind:
        ax.plot([places.index(bits) for bits in known], means, **BEHIND)
        return
    look, number = looks(records.methods)[method], study.methods.index(method)
    # so that intervals don't overlap
    shift = 0.0 if len(study.methods) > MOST else 0.04 * (number - (len(study.methods) - 1) / 2)
    xs = [places.index(bits) + shift for bits in known]
    for x, bits in zip(xs, known, strict=True):
        draw_interval(ax, x, cells[bits], look.color)
    ax.plot(xs, means, label=records.labels[method], linestyle=look.linestyle, **look.marks)


@register_figure("accuracy_against_oscillation")
def against_oscillation(records: Records) -> Drawn:
    """Draw a dot per run, the measure against the oscillation rate mid-run: a column per bits."""
    study, measure = records.study, measures(records.primary)[0]
    require(records.runs, OSCILLATION_MID.key, NO_RATES)
    runs = records.runs.dropna(subset=[OSCILLATION_MID.key])
    picture, grid = _models_by_bits(records, 2.4, study.methods)
    for axes, model in zip(grid, study.models, strict=True):
        for ax, bits in zip(axes, study.bits, strict=True):
            _dots(ax, records, records.of(runs, model=model, bits=bits), measure)
        axes[0].set_ylabel(measure.heading)
    for ax in grid[-1]:
        ax.set_xlabel("oscillation rate\nmid-run (%)")
    add_legend(picture, _legend_columns(records))
    return Drawn(picture, _correlations(records, runs, measure))


def _models_by_bits(
    records: Records, height: float, methods: list[str], **sharing: Any
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its panels of given height, a row per model and a column per bits."""
    study = records.study
    legend = legend_height(len(methods), _legend_columns(records))
    width = COLUMN if len(study.bits) == 1 else PAGE
    picture = new_figure(width, legend + height * len(study.models))
    grid = panels(picture, len(study.models), len(study.bits), **sharing)
    for axes, model in zip(grid, study.models, strict=True):
        for ax, bits in zip(axes, study.bits, strict=True):
            ax.set_title(title_of(records, model, bits))
    return picture, grid


def _legend_columns(records: Records) -> int:
    return 2 if len(records.study.bits) == 1 else 4


def _dots(ax: Axes, records: Records, runs: pd.DataFrame, measure: Measure) -> None:
    style = looks(records.methods)
    for method in records.study.methods:
        mine = records.of(runs, method=method)
        ax.plot(mine[OSCILLATION_MID.key], mine[measure.key], linestyle="none", alpha=0.8,
                label=records.labels[method], **style[method].marks)  # fmt: skip


def _correlations(records: Records, runs: pd.DataFrame, measure: Measure) -> str:
    """Return the caption, with a rank correlation for each model and bits.

    Methods that differ in CGA alone share the run whose oscillation is measured: it counts once,
    with its own result where the study has it.
    """
    study, texts = records.study, []
    qat = runs["run"].map(_qat_runs(records))
    marked = runs.assign(qat=qat, cga=qat != runs["run"]).sort_values("cga", kind="stable")
    apart = marked.drop_duplicates("qat")
    for model, bits in product(study.models, study.bits):
        mine = records.of(apart, model=model, bits=bits)
        if len(mine) > 2 and mine[OSCILLATION_MID.key].nunique() > 1 < mine[measure.key].nunique():
            correlation = stats.spearmanr(mine[OSCILLATION_MID.key], mine[measure.key])
            place = f"{model}, {bits}" if len(study.models) > 1 else bits
            texts.append(f"{correlation.statistic:+.2f} at {place} ({len(mine)} runs of QAT)")
    ranks = f" Spearman's rank correlation: {'; '.join(texts)}." if texts else ""
    return (
        f"{measure.name[0].upper()}{measure.name[1:]} against the oscillation rate mid-run, a mark "
        f"per run; CGA comes later.{ranks} Runs of one method share more than their oscillation: "
        "this is no cause."
    ).replace(" -", " −")


def _qat_runs(records: Records) -> dict[str, str]:
    """Return the QAT run of each run: itself, or one that it builds on."""
    return {
        run.id: next((link for link in run.chain() if link.config.stage == "qat"), run).id
        for cell in records.cells
        for run in cell.runs
    }


@register_figure("accuracy_against_flips")
def against_flips(records: Records) -> Drawn:
    """Draw a numbered mark per method, the measure against flips, with intervals both ways."""
    study, measure = records.study, measures(records.primary)[0]
    require(records.runs, FLIPS_MID.key, NO_RATES)
    runs = records.runs.dropna(subset=[FLIPS_MID.key])
    picture, grid = _models_by_bits(records, 2.8, study.methods)
    for axes, model in zip(grid, study.models, strict=True):
        for ax, bits in zip(axes, study.bits, strict=True):
            _numbered_marks(ax, records, records.of(runs, model=model, bits=bits), measure)
        axes[0].set_ylabel(measure.heading)
    for ax in grid[-1]:
        ax.set_xlabel("flips mid-run\n(per 1,000 weights and step)")
    add_legend(picture, _legend_columns(records))
    _number_marks(picture, grid)
    return Drawn(
        picture,
        f"{measure.name[0].upper()}{measure.name[1:]} against flips mid-run, a mark per method, "
        f"numbered as in the legend: {interval_words(len(study.seeds))}; CGA comes later.",
    )


def _numbered_marks(ax: Axes, records: Records, runs: pd.DataFrame, measure: Measure) -> None:
    style, cells = looks(records.methods), {}
    for number, method in enumerate(records.study.methods, 1):
        mine = records.of(runs, method=method)
        if mine.empty:
            continue
        x = FLIPS_MID.over_seeds(mine[FLIPS_MID.key], records.resplit)
        y = measure.over_seeds(mine[measure.key], records.resplit)
        label = f"{number}  {records.labels[method]}"
        ax.plot(x.mean, y.mean, linestyle="none", label=label, gid=str(number),
                **style[method].marks)  # fmt: skip
        cells[method] = (x, y)
    room = 0.15  # for the numbers beside the marks
    fit_to_data([ax], [y.mean for _, y in cells.values()], room=room)
    fit_to_data([ax], [x.mean for x, _ in cells.values()], upright=False, room=room)
    for method, (x, y) in cells.items():
        draw_interval(ax, x.mean, y, style[method].color)
        draw_interval(ax, y.mean, x, style[method].color, upright=False)


def _number_marks(picture: Figure, grid: list[list[Axes]]) -> None:
    """Put each mark's number beside it, as near as no other number or mark stands."""
    picture.draw_without_rendering()
    for ax in (ax for axes in grid for ax in axes):
        marks = [line for line in ax.get_lines() if line.get_gid()]
        taken: list[Bbox] = [mark.get_window_extent() for mark in marks]
        for mark in marks:
            place = (mark.get_xdata()[0], mark.get_ydata()[0])  # type: ignore[index]
            text = ax.annotate(
                str(mark.get_gid()), place, (0, 0), textcoords="offset points",
                ha="center", va="center", fontsize=6.5, color=mark.get_color(), zorder=4,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
            for radius, angle in product(range(7, 60, 4), range(45, 405, 30)):
                turn = np.deg2rad(angle)
                text.set_position((radius * np.cos(turn), radius * np.sin(turn)))
                box = text.get_window_extent().padded(1)
                if not any(box.overlaps(other) for other in taken):
                    break
            taken.append(box)


@register_figure("frozen_share")
def frozen(records: Records) -> Drawn:
    """Draw the share of weights that are frozen in the CGA stage, over its epochs."""
    study, metrics = records.study, records.metrics
    require(metrics, "frozen", "no run with an annealing stage has finished")
    rows = metrics.dropna(subset=["frozen"])
    methods = [m for m in study.methods if m in set(rows["method"])]
    facets, name = facets_of(records, {"frozen": "frozen weights (%)"}, methods), _FROZEN
    draw = partial(_frozen_curve, records, rows)
    if crowded(facets):
        picture, _ = small_multiples(records, facets, draw, "epoch of annealing")
        return Drawn(picture, name + SENTENCE)
    picture, grid = _models_by_bits(records, 1.9, methods, sharey=True)
    for ax, facet in zip((ax for axes in grid for ax in axes), facets, strict=True):
        for method in facet.methods:
            draw(ax, facet, method, False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid:
        axes[0].set_ylabel("frozen weights (%)")
    # after all are drawn, since a limit stops autoscaling of the shared axis; markers need room
    grid[0][0].set_ylim(top=min(grid[0][0].get_ylim()[1], 101))
    for ax in grid[-1]:
        ax.set_xlabel("epoch of the annealing stage")
    add_legend(picture, _legend_columns(records))
    return Drawn(picture, name)


_FROZEN = (
    "Share of the weights that annealing holds in an epoch: mean, shaded from the lowest to the "
    "highest run."
)


def _frozen_curve(
    records: Records, rows: pd.DataFrame, ax: Axes, facet: Facet, method: str, behind: bool
) -> None:
    mine = records.of(rows, model=facet.model, bits=facet.bits, method=method)
    mine = mine.assign(epoch=mine["epoch"] - mine["epoch"].min() + 1)
    if behind:
        ax.plot(mine.groupby("epoch")["frozen"].mean(), **BEHIND)
    else:
        look = looks(records.methods)[method]
        over_seeds(ax, mine, "epoch", "frozen", records.labels[method], look)


@register_figure("boundary_range")
def boundary_range(records: Records) -> Drawn:
    """Draw the measure against CGA's boundary range, one panel per model and a line per bits."""
    study, measure = records.study, measures(records.primary)[0]
    ranges = boundary_ranges(records)
    runs = records.runs[records.runs["method"].isin(ranges)]
    runs = runs.assign(boundary_range=runs["method"].map(ranges))
    several = runs.groupby(["model", "bits"])["boundary_range"].transform("nunique") > 1
    runs = runs[several]
    if runs.empty:
        raise NothingToDraw("the study's methods have fewer than two boundary ranges at any bits")
    picture = new_figure(COLUMN if len(study.models) == 1 else PAGE, 2.7)
    draw_models(picture, records, runs[measure.key],
                lambda ax, name: _range_lines(ax, records, runs, name), 4)  # fmt: skip
    text = f"{measure.name} against the boundary range of CGA: a dot per seed, a line at the mean."
    if RELEASED_RANGE in ranges.values():
        text += f" OFQ's is {RELEASED_RANGE:g}, the value of the released scripts."
    return Drawn(picture, text[0].upper() + text[1:])


def _range_lines(ax: Axes, records: Records, runs: pd.DataFrame, model: str) -> None:
    study, measure = records.study, measures(records.primary)[0]
    style, ticks = bits_looks(study.bits), sorted(runs["boundary_range"].unique())
    for bits in study.bits:
        mine = records.of(runs, model=model, bits=bits)
        if mine.empty:
            continue
        seeds = mine.groupby("boundary_range")[measure.key]
        look = style[bits]
        ax.plot(mine["boundary_range"], mine[measure.key], ".", color=look.color, alpha=0.4)
        ax.plot(seeds.mean(), marker=look.marker, label=bits, **look.line)
    if RELEASED_RANGE in ticks:
        ax.axvline(RELEASED_RANGE, color="#dddddd", linewidth=4, zorder=0)
    ax.set_xscale("log")
    ax.set_xticks(ticks, [range_name(tick, "\n") for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("boundary range (quantization steps)")
