"""Figures of studies of other shapes: many methods, one bit-width, few seeds, wide intervals."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ofq.config import Run, Workspace
from ofq.report.claims import judge_claims
from ofq.report.collect import Records, collect
from ofq.report.figures import FIGURES
from ofq.report.figures.looks import looks
from ofq.report.figures.multiples import BEHIND, MOST
from ofq.report.figures.registry import NothingToDraw
from ofq.report.figures.style import styled
from ofq.report.noise import noise_rows

from tests.report.test_figures import check_texts
from tests.support import synthetic

FASHION = [
    "accuracy",
    "accuracy_against_bits",
    "accuracy_against_oscillation",
    "oscillation_over_training",
    "joint_flips",
    "frozen_share",
    "noise_injection",
    "boundary_range",
]
ONE_BITS = ["accuracy", "oscillation_over_training", "accuracy_against_oscillation"]
CAPS = {"_", "|", "^", "v", "<", ">"}
CUT = CAPS - {"_", "|"}


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return records_of(
        synthetic.make_shipped(tmp_path_factory.mktemp("fashion"), "fashion", figures=FASHION)
    )


@pytest.fixture(scope="module")
def mechanisms(tmp_path_factory: pytest.TempPathFactory) -> Records:
    root = tmp_path_factory.mktemp("mechanisms")
    return records_of(synthetic.make_shipped(root, "mechanisms", figures=ONE_BITS))


def records_of(workspace: Workspace, top1: synthetic.Top1 = synthetic.default_top1) -> Records:
    synthetic.fill(workspace, top1)
    return collect(workspace, "small")


def drawn(name: str, records: Records) -> Figure:
    with styled():
        return FIGURES[name](records).figure


def caps(figure: Figure) -> list[str]:
    """Ends of the intervals that are drawn."""
    markers = [str(line.get_marker()) for ax in figure.axes for line in ax.get_lines()]
    return [marker for marker in markers if marker in CAPS]


@pytest.mark.parametrize("name", FASHION)
def test_figures_of_ten_methods_at_three_bits_are_legible(name: str, fashion: Records) -> None:
    with styled():
        figure = FIGURES[name](fashion).figure
        check_texts(figure)
    assert figure.get_figheight() < 10


@pytest.mark.parametrize("name", ONE_BITS)
def test_figures_of_fifteen_methods_at_one_bit_width_are_legible(
    name: str, mechanisms: Records
) -> None:
    with styled():
        figure = FIGURES[name](mechanisms).figure
        check_texts(figure)
    assert figure.get_figheight() < 10


@pytest.mark.parametrize("name", ["oscillation_over_training", "accuracy_against_bits"])
def test_more_curves_than_fit_in_a_panel_have_one_each_before_the_others_in_grey(
    name: str, fashion: Records
) -> None:
    known = {look.color for look in looks(fashion.methods).values()}
    panels = [ax for ax in drawn(name, fashion).axes if ax.axison]
    assert len(panels) > MOST
    for ax in panels:
        curves = [line for line in ax.get_lines() if line.get_label() in fashion.labels.values()]
        assert len(curves) == 1
        assert curves[0].get_color() in known
        assert BEHIND["color"] in {line.get_color() for line in ax.get_lines()}


def test_panels_are_those_of_the_bits_at_which_a_method_is_tried(fashion: Records) -> None:
    axes = [ax for ax in drawn("oscillation_over_training", fashion).axes if ax.axison]
    # six methods at three bits and two at one, each with two quantities; noise has no curve
    assert len(axes) == 2 * (6 * 3 + 2)


def test_few_curves_share_a_panel(workspace: Workspace) -> None:
    axes = drawn("oscillation_over_training", collect(workspace, "small")).axes
    assert len(axes) == 4


def test_each_bit_width_has_its_own_scale(workspace: Workspace) -> None:
    records = collect(workspace, "small")
    tops = [ax.get_ylim()[1] for ax in drawn("oscillation_over_training", records).axes[:2]]
    assert tops[0] < 5 < tops[1]
    maps = [ax for ax in drawn("oscillation_by_role", records).axes if ax.images]
    limits = [ax.images[0].get_clim() for ax in maps]
    assert len(set(limits[:8])) == len(set(limits[8:])) == 1
    layers = records.curves.read("layers")
    for (low, high), bits in ((limits[0], "W2A2"), (limits[8], "W4A4")):
        seen = records.of(layers, bits=bits)["oscillation_rate"].max()
        assert low == 0
        assert 0.8 * seen < high <= seen  # a mean over seeds and layers


def test_methods_of_one_bit_width_stand_on_the_axis_by_name(mechanisms: Records) -> None:
    axes = drawn("accuracy", mechanisms).axes[0]
    names = [text.get_text().replace("\n", " ") for text in axes.get_yticklabels()]
    assert [name.replace("\xa0", " ") for name in names] == [*mechanisms.labels.values()]
    tops = [text.get_position()[1] for text in axes.get_yticklabels()]
    low, high = axes.get_ylim()
    assert low > max(tops)  # the first is on top
    assert high < min(tops)


def test_accuracy_against_one_bit_width_is_not_the_same_figure_twice(tmp_path: Path) -> None:
    made = synthetic.make_workspace(tmp_path, bits=["W2A2"])
    records = records_of(made)
    with pytest.raises(NothingToDraw, match="figure 'accuracy' shows it all"):
        drawn("accuracy_against_bits", records)
    records.study.figures.remove("accuracy")
    axes = drawn("accuracy_against_bits", records).axes[0]
    assert axes.get_yticklabels()[0].get_text() == "LSQ"


@pytest.mark.parametrize("bits", [["W2A2"], ["W2A2", "W4A4"]])
@pytest.mark.parametrize("name", ["accuracy", "accuracy_against_bits"])
def test_two_seeds_have_no_interval_and_three_have(
    name: str, bits: list[str], tmp_path: Path
) -> None:
    for count in (2, 3):
        seeds = list(range(count))
        made = synthetic.make_workspace(
            tmp_path / str(count), bits=bits, seeds=seeds, figures=[name]
        )
        figure = drawn(name, records_of(made))
        assert bool(caps(figure)) == (count == 3)


def test_no_interval_sets_the_axis(tmp_path: Path) -> None:
    def scattered(run: Run) -> float:
        return synthetic.of_images({0: 60.0, 1: 70.0, 2: 80.0}[run.config.seed])

    made = synthetic.make_workspace(tmp_path, methods=["lsq", "statsq"])
    records = records_of(made, scattered)
    for name, reach in (("accuracy", 10.0), ("accuracy_against_bits", 1.0)):
        figure = drawn(name, records)
        low, high = figure.axes[0].get_ylim()
        assert 70 - 1.3 * reach < low < high < 70 + 1.3 * reach
        assert set(caps(figure)) == {"^", "v"}  # 70 ± 24.8 goes on beyond both ends
        for line in figure.axes[0].get_lines():
            assert low <= np.min(line.get_ydata()) <= np.max(line.get_ydata()) <= high


def test_claims_have_plain_numbers_on_an_axis_that_no_interval_sets(tmp_path: Path) -> None:
    (tmp_path / "config/claims").mkdir(parents=True)
    shutil.copy(synthetic.SUITE / "config/claims/ofq.yaml", tmp_path / "config/claims")
    made = synthetic.make_shipped(tmp_path, "fashion", figures=["claims"], claims=["ofq"])
    records = records_of(made)
    with styled():
        figure = FIGURES["claims"](records).figure
        check_texts(figure)
    axes = figure.axes[0]
    rows = judge_claims(records)
    rows = rows[(rows["margin"] > 0) & rows["low"].notna()]
    ends = pd.concat([rows[key] / rows["margin"] for key in ("low", "high")]).abs().max()
    assert ends > max(np.abs(axes.get_xlim()))
    assert CUT & set(caps(figure))
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert {"0", "1", "−1", "2", "−2"} <= set(labels)


def test_no_flips_are_counted_before_the_first_step(records: Records) -> None:
    metrics = records.curves.read("metrics")
    before = metrics["epoch"] == 0
    assert before.any()
    for frame in (metrics, records.curves.read("layers")):
        assert frame.loc[frame["epoch"] == 0, "flips"].isna().all()
        assert frame.loc[frame["epoch"] > 0, "flips"].notna().all()
    assert metrics.loc[before, "oscillation_rate"].notna().all()
    flips = drawn("oscillation_over_training", records).axes[2].get_lines()
    starts = {np.min(line.get_xdata()) for line in flips if line.get_label() == "LSQ"}
    assert starts == {1}


def test_figure_of_boundary_ranges_says_which_is_ofqs(tmp_path: Path) -> None:
    made = synthetic.make_shipped(tmp_path, "boundary_range", seeds=[0, 1])
    records = records_of(made)
    labels = [t.get_text() for t in drawn("boundary_range", records).axes[0].get_xticklabels()]
    assert labels == ["0.003", "0.005\n(OFQ)", "0.007", "0.01"]
    with styled():
        assert "OFQ's is 0.005" in FIGURES["boundary_range"](records).caption
    titles = [ax.get_title() for ax in drawn("scale_paths", records).axes]
    assert titles == ["BR 0.003", "BR 0.005 (OFQ)", "BR 0.007", "BR 0.01"]


def test_boundary_ranges_are_drawn_at_the_bits_that_have_several(fashion: Records) -> None:
    lines = drawn("boundary_range", fashion).axes[0].get_lines()
    labels = {line.get_label() for line in lines}
    assert "W2A2" in labels
    assert not {"W3A3", "W4A4"} & labels


def test_gains_of_noise_are_printed_beside_those_of_the_control(fashion: Records) -> None:
    (row,) = noise_rows(fashion)
    assert (row["method"], row["bits"]) == ("StatsQ + QKR, noise", "W2A2")
    assert (row["seeds"], row["draws"], row["changed"]) == ("3", "20", "0.5 %")
    # the three seeds lose 1, 2 and 3 points, and twice that by the control
    assert (row["gain"], row["control"]) == ("−2.00", "−4.00")
    half = 4.303 * np.sqrt(1 / 3 + fashion.resplit)  # t of 2 degrees of freedom; σ is 1 point
    assert row["interval"] == f"[−{2 + half:.2f},\xa0+{half - 2:.2f}]"
    assert row["control_interval"] == f"[−{4 + 2 * half:.2f},\xa0+{2 * half - 4:.2f}]"


def test_study_without_noise_has_no_rows_of_it(workspace: Workspace) -> None:
    assert noise_rows(collect(workspace, "small")) == []
