"""Figures of one quantity against another: accuracy, bits, oscillation, and frozen weights."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from ofq.config.fields import parse_bits
from ofq.report.collect import Records
from ofq.report.figures.by_model import caption_of, draw_baseline, draw_models, title_of
from ofq.report.figures.recorded import boundary_ranges
from ofq.report.figures.registry import NO_RATES, Drawn, NothingToDraw, register_figure, require
from ofq.report.figures.style import (
    COLUMN,
    PAGE,
    add_legend,
    legend_height,
    looks,
    new_figure,
    over_seeds,
    panels,
)
from ofq.report.measures import OSCILLATION_MID, Measure, measures


@register_figure("accuracy_against_bits")
def against_bits(records: Records) -> Drawn:
    """Draw a line per method over the weights' bits, one panel per model."""
    study, measure = records.study, measures(records.primary)[0]
    width = COLUMN if len(study.models) == 1 else PAGE
    columns = 2 if width == COLUMN else 4
    picture = new_figure(width, 2.3 + legend_height(len(study.methods), columns))
    draw_models(picture, records, lambda ax, name: _bit_lines(ax, records, measure, name), columns)
    seeds = len(study.seeds)
    spread = f"mean and 95 % t interval over {seeds} seeds" if seeds > 1 else "one seed"
    caption = f"{measure.name} against bits: {spread}."
    return Drawn(picture, caption_of(records, caption))


def _bit_lines(ax: Axes, records: Records, measure: Measure, model: str) -> None:
    study, style = records.study, looks(records.study.methods)
    places = {bits: x for x, bits in enumerate(sorted(study.bits, key=parse_bits))}
    for i, method in enumerate(study.methods):
        runs = records.of(records.runs, model=model, method=method)
        cells = {
            str(bits): measure.over_seeds(mine[measure.key], records.resplit)
            for bits, mine in runs.groupby("bits")
        }
        known = sorted(cells, key=parse_bits)
        shift = 0.04 * (i - (len(study.methods) - 1) / 2)  # so that intervals don't overlap
        ax.errorbar(
            [places[bits] + shift for bits in known],
            [cells[bits].mean for bits in known],
            np.nan_to_num([(cells[b].mean - cells[b].low, cells[b].high - cells[b].mean)
                           for b in known]).T,
            marker=style[method].marker, label=records.labels[method], capsize=2, elinewidth=0.8,
            **style[method].line,
        )  # fmt: skip
    draw_baseline(ax, records, model)
    ax.set_xticks(list(places.values()), list(places))
    ax.set_xlim(-0.4, len(places) - 0.6)


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
    style = looks(records.study.methods)
    for method in records.study.methods:
        mine, look = records.of(runs, method=method), style[method]
        ax.plot(mine[OSCILLATION_MID.key], mine[measure.key], look.marker, color=look.color,
                alpha=0.75, label=records.labels[method])  # fmt: skip


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


@register_figure("frozen_share")
def frozen(records: Records) -> Drawn:
    """Draw the share of weights that are frozen in the CGA stage, over its epochs."""
    study, metrics = records.study, records.metrics
    require(metrics, "frozen", "no run with an annealing stage has finished")
    rows = metrics.dropna(subset=["frozen"])
    methods = [m for m in study.methods if m in set(rows["method"])]
    picture, grid = _models_by_bits(records, 1.9, methods, sharey=True)
    style = looks(study.methods)
    for axes, model in zip(grid, study.models, strict=True):
        for ax, bits in zip(axes, study.bits, strict=True):
            for method in methods:
                mine = records.of(rows, model=model, bits=bits, method=method)
                mine = mine.assign(epoch=mine["epoch"] - mine["epoch"].min() + 1)
                over_seeds(ax, mine, "epoch", "frozen", records.labels[method], style[method])
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("frozen weights (%)")
    # after all are drawn, since a limit stops autoscaling of the shared axis; markers need room
    grid[0][0].set_ylim(top=min(grid[0][0].get_ylim()[1], 101))
    for ax in grid[-1]:
        ax.set_xlabel("epoch of the annealing stage")
    add_legend(picture, _legend_columns(records))
    return Drawn(
        picture,
        "Share of the weights that annealing holds in an epoch: mean, shaded from the lowest to "
        "the highest run.",
    )


@register_figure("boundary_range")
def boundary_range(records: Records) -> Drawn:
    """Draw the measure against CGA's boundary range, one panel per model and a line per bits."""
    study, measure = records.study, measures(records.primary)[0]
    ranges = boundary_ranges(records)
    if len(ranges) < 2:
        raise NothingToDraw("the study's methods have fewer than two boundary ranges")
    runs = records.runs[records.runs["method"].isin(ranges)]
    runs = runs.assign(boundary_range=runs["method"].map(ranges))
    picture = new_figure(COLUMN if len(study.models) == 1 else PAGE, 2.5)
    draw_models(picture, records, lambda ax, name: _range_lines(ax, records, runs, name), 4)
    text = f"{measure.name} against the boundary range of CGA: a dot per seed, a line at the mean."
    return Drawn(picture, text[0].upper() + text[1:])


def _range_lines(ax: Axes, records: Records, runs: pd.DataFrame, model: str) -> None:
    study, measure = records.study, measures(records.primary)[0]
    style, ticks = looks(study.bits), sorted(runs["boundary_range"].unique())
    for bits in study.bits:
        mine = records.of(runs, model=model, bits=bits)
        seeds = mine.groupby("boundary_range")[measure.key]
        look = style[bits]
        ax.plot(mine["boundary_range"], mine[measure.key], ".", color=look.color, alpha=0.4)
        ax.plot(seeds.mean(), marker=look.marker, label=bits, **look.line)
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("boundary range (quantization steps)")
