"""Figures of latent weights on their grid: histograms, single weights' paths, and scales."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ofq.report.collect import Records
from ofq.report.figures.looks import role_looks
from ofq.report.figures.recorded import boundary_ranges, of_first_bits, of_first_model, range_name
from ofq.report.figures.registry import Drawn, NothingToDraw, register_figure
from ofq.report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    add_legend,
    broken,
    new_figure,
    panels,
)
from ofq.values import parse_bits

NEAR = 0.1
"""Reach of the histograms' lower panels from a threshold, in quantization steps."""

COARSE = 10
"""Bins per quantization step in the histograms' upper panels."""

ZOOM = 60
"""Number of steps that the lowest panels of the paths show."""

FOLLOWED = 2
"""Number of weights whose whole path is shown."""

MOMENTS = {
    "start": ("start of QAT", "#b5b5b5", "-"),
    "middle": ("middle of QAT", "#56B4E9", "-"),
    "qat": ("end of QAT", "#0072B2", "-"),
    "cga": ("end of annealing", "#D55E00", (0, (4, 1.2))),
}
"""Labels, colours and line styles of the histograms' moments."""


@register_figure("latent_weights")
def latent_weights(records: Records) -> Drawn:
    """Draw histograms of scaled latent weights at a few epochs: a column per method."""
    study = records.study
    model, recorded = of_first_model(records, "histograms", "histograms")
    bits = [b for b in study.bits if b in set(recorded["bits"])]
    width = COLUMN if len(study.methods) == 1 else PAGE
    picture = new_figure(width, 0.9 + 2.9 * len(bits))
    grid = panels(picture, 2 * len(bits), len(study.methods), sharey="row", sharex="row")
    for i, name in enumerate(bits):
        weight_bits = parse_bits(name)[0]
        for j, method in enumerate(study.methods):
            rows = records.of(recorded, bits=name, method=method)
            for moment, counts in _moments(rows, weight_bits):
                _whole(grid[2 * i][j], moment, counts, weight_bits)
                _near(grid[2 * i + 1][j], moment, counts, weight_bits)
            if i == 0:
                grid[0][j].set_title(broken(records.labels[method], len(study.methods)))
            grid[2 * i][j].set_xlabel("position (steps)")
            grid[2 * i + 1][j].set_xlabel("distance to threshold")
        grid[2 * i][0].set_ylabel(f"{name}\nweights per step (%)")
        grid[2 * i + 1][0].set_ylabel("weights per step (%)")
        for axes in grid[2 * i : 2 * i + 2]:
            axes[0].set_ylim(bottom=0)
    add_legend(picture, 4)
    return Drawn(
        picture,
        f"Latent weights of {model} by their position on the quantization grid, all low-bit "
        "weights of all seeds together, as percent of them per quantization step. Above: the whole "
        "grid; dotted lines are rounding thresholds, weights beyond the outermost levels count "
        f"where they are clipped. Below: within {NEAR:g} steps of the nearest threshold.",
    )


def _moments(rows: pd.DataFrame, weight_bits: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield counts by bin of the grid, over roles, layers and seeds, at each moment of a method."""
    rows = rows[rows["weight_bits"] == weight_bits]
    qat, cga = (rows[rows["stage"] == stage] for stage in ("qat", "cga"))
    epochs = sorted(qat["epoch"].unique())
    places = {"qat": (qat, epochs[-1])} if epochs else {}
    if len(epochs) > 1:
        places = {"start": (qat, epochs[0]), **places}
    if len(epochs) > 2:
        places = {"middle": (qat, epochs[len(epochs) // 2]), **places}
    if not cga.empty:
        places["cga"] = (cga, cga["epoch"].max())
    for moment in (name for name in MOMENTS if name in places):
        stage, epoch = places[moment]
        yield moment, np.sum(stage.loc[stage["epoch"] == epoch, "counts"].to_list(), axis=0)


def _whole(ax: Axes, moment: str, counts: NDArray[np.int64], weight_bits: int) -> None:
    """Draw the whole grid, in coarse bins, with its thresholds."""
    per_step = len(counts) // 2**weight_bits
    merged = per_step // min(COARSE, per_step)
    edges = np.arange(0, len(counts) + 1, merged) / per_step - 2 ** (weight_bits - 1) - 0.5
    shares = 100 * np.add.reduceat(counts, np.arange(0, len(counts), merged)) / counts.sum()
    _outline(ax, moment, shares * per_step / merged, edges)
    for threshold in edges[:: per_step // merged][1:-1]:
        ax.axvline(threshold, color=GREY, linestyle=":", linewidth=0.7, zorder=0)


def _near(ax: Axes, moment: str, counts: NDArray[np.int64], weight_bits: int) -> None:
    """Draw the weights around thresholds, summed over all thresholds."""
    per_step = len(counts) // 2**weight_bits
    reach = round(NEAR * per_step)
    around = [counts[t - reach : t + reach] for t in range(per_step, len(counts), per_step)]
    shares = 100 * np.sum(around, axis=0) / counts.sum()
    _outline(ax, moment, shares * per_step, np.arange(-reach, reach + 1) / per_step)
    ax.axvline(0, color=GREY, linestyle=":", linewidth=0.7, zorder=0)


def _outline(
    ax: Axes, moment: str, heights: NDArray[np.float64], edges: NDArray[np.float64]
) -> None:
    label, color, dashes = MOMENTS[moment]
    ax.stairs(heights, edges, color=color, linestyle=dashes, linewidth=1.0, label=label,
              baseline=None)  # fmt: skip


@register_figure("weight_paths")
def weight_paths(records: Records) -> Drawn:
    """Draw the recorded weights that flip most, and the thresholds: a column per method."""
    study = records.study
    model, bits, rows = of_first_bits(records, "trajectories", "weights", first_seed=True)
    width = COLUMN if len(study.methods) == 1 else PAGE
    picture = new_figure(width, 0.9 + 1.15 * (FOLLOWED + 1))
    grid = panels(picture, FOLLOWED + 1, len(study.methods), sharey="row")
    for j, method in enumerate(study.methods):
        column = [axes[j] for axes in grid]
        column[0].set_title(broken(records.labels[method], len(study.methods)))
        column[-1].set_xlabel("step")
        paths = _busiest(records.of(rows, method=method))
        for ax, path in zip(column, paths, strict=False):
            _path(ax, path)
        if paths:
            _closer(column[-1], _busy_stretch(paths[0]))
    for axes, name in zip(grid, ("most flips", "second most"), strict=False):
        axes[0].set_ylabel(f"{name}\nposition (steps)")
    grid[-1][0].set_ylabel("most flips, closer\nto threshold (steps)")
    add_legend(picture, 3)
    return Drawn(
        picture,
        f"Single weights of {model} at {bits} through the grid in each method's last stage: the "
        "two that flip most of those followed with its first seed, which are the ones nearest to a "
        "threshold when the stage begins. Below, the distance of the first from the threshold "
        f"(dotted) in the {ZOOM} steps in which it flips most.",
    )


def _busiest(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the paths of the recorded weights that flip most in the last stage, by step."""
    if (rows["stage"] == "cga").any():
        rows = rows[rows["stage"] == "cga"]
    paths = [path.sort_values("step") for _, path in rows.groupby("weight")]
    return sorted(paths, key=lambda path: -_changed(path).sum())[:FOLLOWED]


def _changed(path: pd.DataFrame) -> pd.Series:
    return path["code"].diff().fillna(0) != 0


def _busy_stretch(path: pd.DataFrame) -> pd.DataFrame:
    """Return the consecutive steps in which a weight flips most."""
    changes = _changed(path).to_numpy().cumsum()
    windows = changes[ZOOM - 1 :] - changes[: max(0, len(changes) - ZOOM + 1)]
    first = int(windows.argmax()) if len(windows) else 0
    return path.iloc[first : first + ZOOM]


def _path(ax: Axes, path: pd.DataFrame) -> None:
    steps = path["step"]
    ax.step(steps, path["code"], where="post", color="#E69F00", linewidth=0.7, label="code")
    ax.plot(steps, path["position"], color="#0072B2", linewidth=0.9, label="latent weight")
    low, high = np.floor(path["position"].min()), np.ceil(path["position"].max())
    for threshold in np.arange(low, high) + 0.5:
        ax.axhline(threshold, color=GREY, linestyle=":", linewidth=0.7, zorder=0)


def _closer(ax: Axes, path: pd.DataFrame) -> None:
    threshold = np.floor(path["position"].median()) + 0.5
    distance = path["position"] - threshold
    ax.plot(path["step"], distance, color="#0072B2", linewidth=0.9, marker=".", markersize=2)
    ax.axhline(0, color=GREY, linestyle=":", linewidth=0.7, zorder=0)


@register_figure("scale_paths")
def scale_paths(records: Records) -> Drawn:
    """Draw scales of single rows during CGA: a column per boundary range."""
    model, bits, recorded = of_first_bits(records, "trajectories", "weights", first_seed=True)
    rows = recorded[recorded["stage"] == "cga"]
    ranges = {m: x for m, x in boundary_ranges(records).items() if m in set(rows["method"])}
    if not ranges:
        raise NothingToDraw("no run with CGA that recorded weights has finished")
    seed = int(rows["seed"].min())
    rows = records.of(rows, seed=seed)
    methods = sorted(ranges, key=ranges.__getitem__)
    picture = new_figure(COLUMN if len(methods) == 1 else PAGE, 2.6)
    axes, style = panels(picture, 1, len(methods), sharey=True)[0], role_looks(set(rows["role"]))
    for ax, method in zip(axes, methods, strict=True):
        for _, path in records.of(rows, method=method).sort_values("step").groupby("weight"):
            role, first = path["role"].iloc[0], path["scale"].iloc[0]
            change = 100 * (path["scale"] / first - 1)
            steps = path["step"] - path["step"].min() + 1
            known = ax.get_legend_handles_labels()[1]
            ax.plot(steps, change, label="" if role in known else role, **style[role].line)
        ax.set_title(f"BR {range_name(ranges[method])}")
        ax.set_xlabel("step of CGA")
    axes[0].set_ylabel("change of the scale (%)")
    add_legend(picture, 3 if len(methods) == 1 else 6)
    return Drawn(
        picture,
        f"Quantization scales of single rows of {model} at {bits}, seed {seed}, during CGA with "
        "several boundary ranges: change since its first step. The rows, the same in all panels, "
        "are those of the followed weights, coloured by role.",
    )
