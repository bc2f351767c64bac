import html
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ofq.config import Workspace
from ofq.report import build
from ofq.report.collect import collect
from ofq.report.figures import FIGURES, write_figures
from ofq.report.figures.heat_maps import ACTIVATIONS
from ofq.report.figures.style import add_legend, new_figure, panels, save, styled

from tests.support import synthetic

DIGITS = synthetic.STUDY["figures"]
TOY = ["loss", "trajectories"]


def test_a_line_in_an_svg_goes_through_its_points(tmp_path):
    points = np.array([[0, 0], [0, 3], [2, 3], [4, 1], [4, 1.5], [1, 1.5]])
    with styled():
        figure = Figure(figsize=(2, 2))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 4), ylim=(0, 4))
        axes.plot(*points.T, gid="line")
        save(figure, tmp_path / "line")
    path = re.search(r'id="line">\s*<path d="([^"]+)"', (tmp_path / "line.svg").read_text())[1]
    assert re.sub("[^A-Z]", "", path) == "MVHLVH"
    place, drawn = [0.0, 0.0], []
    for letter, numbers in re.findall("([A-Z])([^A-Z]*)", path):
        values = [float(number) for number in numbers.split()]
        place = {"H": [*values, place[1]], "V": [place[0], *values]}.get(letter, values)
        drawn.append(place)
    expected = points * [36, -36] + [0, 144]  # in points, from the top
    np.testing.assert_allclose(drawn, expected, atol=0.01)


def boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Where each visible, non-empty text stands, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    found = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    # Ticks outside an axis' limits keep texts that are never drawn.
    return [(text, box) for text, box in found if box.width > 1 and _is_drawn(figure, text, box)]


def _is_drawn(figure: Figure, text: str, box: Bbox) -> bool:
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                label = tick.label1
                if label.get_text() == text and label.get_window_extent().bounds == box.bounds:
                    return low <= tick.get_loc() <= high
    return True


def check_texts(figure: Figure) -> None:
    """No text is clipped or overlaps another."""
    found = boxes(figure)
    assert len(found) > 8
    for text, box in found:
        assert "$" not in text  # mathematics is printed as it is
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (one, box), (other, another) in combinations(found, 2):
        overlap = Bbox.intersection(box, another)
        assert overlap is None or min(overlap.width, overlap.height) < 1, (one, other)


@pytest.mark.parametrize("name", DIGITS + TOY)
def test_no_text_is_clipped_or_overlaps_another(
    name: str, workspace: Workspace, toy: Workspace
) -> None:
    records = collect(workspace if name in DIGITS else toy, "small")
    with styled():
        check_texts(FIGURES[name](records).figure)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("latent_weights", ["statsq+qkr", "statsq+qkr+cga", "lsq", "wide", "wider"]),
        ("oscillation_by_role", [*synthetic.FACTORIAL]),
        ("activation_oscillation", [*synthetic.FACTORIAL]),
    ],
)
def test_no_text_overlaps_over_many_panels(name: str, methods: list[str], tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=methods, seeds=[0])
    synthetic.fill(workspace)
    with styled():
        check_texts(FIGURES[name](collect(workspace, "small")).figure)


PAPERS = [
    "deit_tiny_distilled_patch16_224",
    "deit_small_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
]
STUDIES = {
    "main": {"models": PAPERS, "methods": ["statsq+qkr+cga"]},
    "ablation": {"models": PAPERS[1:2], "methods": synthetic.STUDY["methods"]},
    "all of it": {"models": PAPERS, "methods": synthetic.STUDY["methods"]},
}


@pytest.fixture(scope="module", params=STUDIES)
def papers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Studies of the paper's shape: its models, of twelve blocks, at three bits."""
    root, bits = tmp_path_factory.mktemp("papers"), ["W2A2", "W3A3", "W4A4"]
    made = synthetic.make_workspace(root, bits=bits, seeds=[0], **STUDIES[request.param])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "DEPTH", 12)
        synthetic.fill(made)
    return made


@pytest.mark.parametrize("name", DIGITS)
def test_figures_of_the_papers_studies_are_legible_and_fit_on_a_page(
    name: str, papers: Workspace
) -> None:
    with styled():
        figure = FIGURES[name](collect(papers, "small")).figure
        check_texts(figure)
    assert figure.get_figwidth() <= 7
    assert figure.get_figheight() < 10


@pytest.mark.parametrize("name", ["frozen_share", "accuracy_against_oscillation"])
def test_models_are_drawn_apart(name: str, tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, models=["micro", "macro"])
    synthetic.fill(workspace)
    records = collect(workspace, "small")
    with styled():
        axes = FIGURES[name](records).figure.axes
    assert [ax.get_title() for ax in axes] == [
        f"{model}\n{bits}" for model in ("micro", "macro") for bits in ("W2A2", "W4A4")
    ]
    if name == "accuracy_against_oscillation":
        drawn = [sorted(y for line in ax.get_lines() for y in line.get_ydata()) for ax in axes]
        assert drawn == [
            sorted(records.of(records.runs, model=model, bits=bits)["top1"])
            for model in ("micro", "macro")
            for bits in ("W2A2", "W4A4")
        ]


@pytest.mark.parametrize("name", DIGITS)
def test_no_line_leaves_its_axes(name: str, workspace: Workspace) -> None:
    with styled():
        axes = FIGURES[name](collect(workspace, "small")).figure.axes
    for ax in axes:
        low, high = ax.get_ylim()
        for line in ax.get_lines():
            if line.get_transform() == ax.transData:
                values = np.asarray(line.get_ydata(), float)
                assert np.nanmin(values) >= low - 1e-9
                assert np.nanmax(values) <= high + 1e-9


def test_legend_with_long_labels_takes_fewer_columns_and_the_figure_grows() -> None:
    with styled():
        figure = new_figure(3.4, 2.0)
        axes = panels(figure, 1, 1)[0][0]
        for number in range(6):
            axes.plot([0, 1], label=f"{number}: a method with quite a long name")
        add_legend(figure, 4)
        figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width
    assert len(figure.legends) == 1
    assert figure.get_figheight() > 2.0


def test_legend_has_what_any_panel_shows_once() -> None:
    with styled():
        figure = new_figure(3.4, 2.0)
        for axes, labels in zip(panels(figure, 1, 2)[0], ("b", "ab"), strict=True):
            for label in labels:
                axes.plot([0, 1], label=label)
        add_legend(figure, 4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "a"]


@pytest.mark.parametrize("accuracy", [(1, 3), (1, 1000)])
def test_axis_of_losses_is_labelled_whatever_it_spans(
    accuracy: tuple[int, int], tmp_path: Path
) -> None:
    workspace = synthetic.make_workspace(
        tmp_path, "toy_regression", bits=["W2A32"], methods=["lsq"], seeds=[0], figures=["loss"]
    )
    synthetic.fill(workspace)
    records = collect(workspace, "small")
    records.metrics["loss"] = np.geomspace(*accuracy, len(records.metrics)) / 1000
    with styled():
        figure = FIGURES["loss"](records).figure
        figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    labels = axes.get_yticklabels(which="both")
    assert (
        sum(bool(label.get_text()) and low <= label.get_position()[1] <= high for label in labels)
        > 1
    )


def test_dollars_in_a_label_are_dollars() -> None:
    with styled():
        figure = new_figure(3.4, 2.0)
        figure.suptitle("cheaper by $1_, or by $2^")
        figure.draw_without_rendering()


def test_every_figure_has_ink(report: Path, toy: Workspace, tmp_path: Path) -> None:
    write_figures(tmp_path / "figures", collect(toy, "small"))
    files = [*(report / "figures").glob("*.png"), *(tmp_path / "figures").glob("*.png")]
    assert len(files) == len(DIGITS) + len(toy.study("small").figures)
    for path in files:
        ink = np.mean(imread(path)[..., :3].min(axis=-1) < 0.9)
        assert 0.01 < ink < 0.9, path.name
        assert path.with_suffix(".svg").read_text().count("<path") > 20


def test_many_methods_and_models_still_fit(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, models=["micro", "macro"], seeds=[0])
    synthetic.fill(workspace)
    saved, absent = write_figures(tmp_path / "figures", collect(workspace, "small"))
    assert ([figure.name for figure in saved], absent) == (DIGITS, {})
    assert {figure.width for figure in saved if figure.name != "scale_paths"} == {7.0}


def test_boundary_ranges_are_drawn_at_their_values_with_the_seeds_mean(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=["statsq", "wide", "wider"])
    synthetic.fill(workspace)
    records = collect(workspace, "small")
    with styled():
        axes = FIGURES["boundary_range"](records).figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    for bits in ("W2A2", "W4A4"):
        means = [
            records.of(records.runs, bits=bits, method=m)["top1"].mean() for m in ("wide", "wider")
        ]
        np.testing.assert_allclose(lines[bits].get_xdata(), [0.01, 0.1])
        np.testing.assert_allclose(lines[bits].get_ydata(), means)


def test_heat_map_has_a_row_per_block(workspace: Workspace) -> None:
    with styled():
        axes = FIGURES["oscillation_by_role"](collect(workspace, "small")).figure.axes
    assert axes[0].images[0].get_array().shape == (synthetic.DEPTH, 7)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["0", "1", "2", "3"]


def test_heat_map_of_activations_holds_their_rates(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(
        tmp_path, methods=["statsq"], bits=["W2A2"], figures=["activation_oscillation"]
    )
    synthetic.fill(workspace)
    records = collect(workspace, "small")
    with styled():
        axes = FIGURES["activation_oscillation"](records).figure.axes
    run = next(r for r in workspace.grid("small").runs().values() if r.config.stage == "qat")
    roles = [role for role in ACTIVATIONS if role != "qk"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == roles
    expected = [
        [
            synthetic.activation_rate(run, synthetic.EPOCHS, depth, role)
            for depth in range(synthetic.DEPTH)
        ]
        for role in roles
    ]
    np.testing.assert_allclose(axes[1].images[0].get_array(), expected)


def test_rank_correlation_is_told_for_each_bits(workspace: Workspace) -> None:
    records = collect(workspace, "small")
    caption = FIGURES["accuracy_against_oscillation"](records).caption
    for bits in ("W2A2", "W4A4"):
        runs = records.of(records.runs, bits=bits)
        runs = runs[runs["method"] != "statsq+qkr+cga"]  # its runs of QAT are statsq+qkr's
        ranks = [runs[k].rank() for k in ("oscillation_rate_mid", "top1")]
        expected = f"{np.corrcoef(*ranks)[0, 1]:+.2f}".replace("-", "−")
        assert f"{expected} at {bits} (9 runs of QAT)" in caption


def why_absent(workspace: Workspace, figure: str) -> str:
    """What a study's page says about a figure that it lacks."""
    page = build(workspace, "small", workspace.reports / "small").read_text()
    assert f"figures/{figure}.svg" not in page
    for ending in ("svg", "png"):  # which a workflow waits for
        assert (workspace.reports / f"small/figures/{figure}.{ending}").stat().st_size > 500
    found = re.search(rf"Without <code>{figure}</code>: (.*)</p>", page)
    assert found is not None
    return html.unescape(found[1])


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        ("boundary_range", "two boundary ranges"),
        ("frozen_share", "an annealing stage"),
        ("scale_paths", "no run with CGA"),
    ],
)
def test_figure_without_anything_to_show_leaves_the_report_a_reason(
    figure: str, reason: str, tmp_path: Path
) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=["lsq"], figures=[figure])
    synthetic.fill(workspace)
    assert reason in why_absent(workspace, figure)


@pytest.mark.parametrize(
    ("figure", "key"),
    [
        ("trajectories", "weights"),
        ("weight_paths", "weights"),
        ("scale_paths", "weights"),
        ("latent_weights", "histograms"),
        ("gradient_sign_changes", "sample"),
        ("joint_flips", "sample"),
        ("activation_oscillation", "activations"),
    ],
)
def test_figure_without_its_recordings_says_what_to_change(
    figure: str, key: str, tmp_path: Path
) -> None:
    workspace = synthetic.make_workspace(tmp_path, recording={}, figures=[figure])
    synthetic.fill(workspace)
    found = why_absent(workspace, figure)
    assert f"'probes: {{{key}: N}}' in the stages of recipe" in found


RECORDED = ["latent_weights", "gradient_sign_changes", "joint_flips", "weight_paths"]


def test_recordings_of_the_first_model_that_has_any_are_drawn(tmp_path: Path) -> None:
    models, methods = ["micro", "macro"], ["lsq", "statsq"]
    workspace = synthetic.make_workspace(
        tmp_path, models=models, methods=methods, seeds=[0], figures=["accuracy", *RECORDED]
    )
    synthetic.fill(workspace)
    for cell in workspace.grid("small").cells:
        if cell.model == "micro" and cell.method != "fp":
            shutil.rmtree(workspace.results / "runs" / cell.runs[0].id)
    with styled():
        drawn = {
            name: FIGURES[name](collect(workspace, "small")) for name in ["accuracy", *RECORDED]
        }
    assert all("macro" in drawn[name].caption for name in RECORDED)
    labels = [text.get_text() for text in drawn["accuracy"].figure.legends[0].get_texts()]
    assert sorted(labels) == ["Full precision", "LSQ", "StatsQ"]


def test_report_of_the_baselines_alone_says_which_figures_wait(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path)
    synthetic.fill(workspace)
    for run in workspace.grid("small").runs().values():
        if run.config.stage != "fp":
            shutil.rmtree(workspace.results / "runs" / run.id)
    assert "no finished run has" in why_absent(workspace, "oscillation_over_training")
    assert why_absent(workspace, "latent_weights") == "no quantized run has finished."
    assert (workspace.reports / "small/figures/accuracy.svg").exists()


def test_sign_changes_are_drawn_as_their_shares(workspace: Workspace) -> None:
    with styled():
        axes = FIGURES["gradient_sign_changes"](collect(workspace, "small")).figure.axes
    assert len(axes) == 8
    for ax in axes:
        found = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
        for width in (0.005, 0.01, 0.02, 0.05, 0.1):
            share = 100 * synthetic.share_of_changes(width)
            np.testing.assert_allclose(found[f"BR {width:g}"], share, atol=0.1)
        np.testing.assert_allclose(found["all weights"], 50)


def test_joint_flips_are_held_against_independence(workspace: Workspace) -> None:
    with styled():
        axes = FIGURES["joint_flips"](collect(workspace, "small")).figure.axes
    lines = {marker: [] for marker in "os_"}
    for line in axes[0].get_lines():
        lines.setdefault(line.get_marker(), []).append(np.asarray(line.get_ydata(), float))
    np.testing.assert_allclose(np.concatenate(lines["o"] + lines["s"]), 2.0)
    np.testing.assert_allclose(np.concatenate(lines["_"]), 1.0)  # heads that have nothing in common
    rate = axes[2].get_lines()[0].get_ydata()
    np.testing.assert_allclose(rate[:4], [1000 * 30 * e / (2 * 2304 * 28) for e in range(1, 5)])


def test_histograms_are_shares_of_all_weights_per_step(workspace: Workspace) -> None:
    with styled():
        axes = FIGURES["latent_weights"](collect(workspace, "small")).figure.axes
    for ax in axes[:4]:
        for patch in ax.patches:
            heights, edges, _ = patch.get_data()
            assert (edges[0], edges[-1]) == (-2.5, 1.5)
            assert np.sum(heights * np.diff(edges)) == pytest.approx(100)
    labels = [len(ax.patches) for ax in axes[:4]]
    assert labels == [3, 3, 3, 4]


def test_scales_are_drawn_by_boundary_range(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=["statsq", "wider", "wide"])
    synthetic.fill(workspace)
    with styled():
        axes = FIGURES["scale_paths"](collect(workspace, "small")).figure.axes
    assert [ax.get_title() for ax in axes] == ["BR 0.01", "BR 0.1"]
    assert all(len(ax.get_lines()) == 2 for ax in axes)
    assert all(line.get_ydata()[0] == 0 for ax in axes for line in ax.get_lines())


def test_each_method_s_mean_stands_at_its_flips_and_accuracy(workspace: Workspace) -> None:
    records = collect(workspace, "small")
    with styled():
        axes = FIGURES["accuracy_against_flips"](records).figure.axes
    for ax, bits in zip(axes, records.study.bits, strict=True):
        marks = {line.get_gid(): line for line in ax.get_lines() if line.get_gid()}
        for number, method in enumerate(records.study.methods, 1):
            runs = records.of(records.runs, bits=bits, method=method)
            np.testing.assert_allclose(marks[str(number)].get_xdata(), runs["flips_mid"].mean())
            np.testing.assert_allclose(marks[str(number)].get_ydata(), runs["top1"].mean())
        numbers = sorted(text.get_text() for text in ax.texts)
        assert numbers == sorted(marks)
