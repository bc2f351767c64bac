import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.report import build
from ofq.report.collect import collect
from ofq.report.compare import compare, hold_against, summarize_cells
from ofq.report.pooling import PRIOR_DF, Variance
from ofq.report.statistics import detectable, holm
from ofq.report.tables import Table, to_markdown, verdicts_to_markdown
from ofq.report.verdicts import Distance, Reported, Spread, distance, exactly, judge

from tests.support import synthetic


def alone(
    values: ArrayLike, reported: float, runs: int = 1, images: int = 0, family: int = 1
) -> Distance:
    """The distance of one cell, by its own variance."""
    spread = Spread(Variance.of(values), images=images)
    return distance(values, Reported(reported, runs), spread, family)


T_2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom


def test_interval_is_that_of_one_more_training_with_the_seeds_spread() -> None:
    found = alone([70.0, 71.0, 72.0], 70.5)
    half = T_2 * 1.0 * math.sqrt(1 / 3 + 1)
    assert (found.n, found.difference, found.by_images) == (3, 0.5, False)
    assert (found.low, found.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    # the t distribution with 2 degrees of freedom has a closed form
    t = 0.5 / math.sqrt(4 / 3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_many_reported_runs_narrow_the_interval() -> None:
    one, ten = (alone([70.0, 71.0, 72.0], 70.5, runs) for runs in (1, 10))
    assert ten.high - ten.low == pytest.approx(
        (one.high - one.low) * math.sqrt((1 / 3 + 1 / 10) / (1 / 3 + 1))
    )


def test_reported_spread_counts_with_its_own_degrees_of_freedom() -> None:
    """Welch's t test from two means, deviations and numbers of runs."""
    ours, spread = [70.0, 71.0, 72.5], Spread(Variance.of([70.0, 71.0, 72.5]))
    found = distance(ours, Reported(69.0, 5, 0.4), spread)
    known = stats.ttest_ind_from_stats(
        np.mean(ours), np.std(ours, ddof=1), 3, 69.0, 0.4, 5, equal_var=False
    )
    assert found.p == pytest.approx(known.pvalue)
    assert found.high - found.low < alone(ours, 69.0, 5).high - alone(ours, 69.0, 5).low


def test_seeds_that_re_split_have_a_wider_interval() -> None:
    variance = Variance(1.0, 2)
    plain, wide = (
        distance([70.0, 71.0, 72.0], Reported(70.5), Spread(variance, ratio)) for ratio in (0, 1)
    )
    ratio = math.sqrt((1 / 3 + 1 + 1) / (1 / 3 + 1))
    assert wide.high - wide.low == pytest.approx(ratio * (plain.high - plain.low))


def test_no_interval_or_power_is_beyond_what_an_accuracy_can_be() -> None:
    found = alone([10.0, 90.0], 98.0)
    assert (found.low, found.high) == (-98.0, 2.0)
    assert math.isnan(found.detectable)
    assert judge(found, found.p) == "underpowered"


def wilson(rate: float, images: int) -> tuple[float, float]:
    """Where a score test of another rate has a p-value of 5 %, by its formula, in percent."""
    z = 1.959963984540054
    centre = (rate + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z * math.sqrt(rate * (1 - rate) / images + z**2 / (4 * images**2))
    return 100 * (centre - half / (1 + z**2 / images)), 100 * (centre + half / (1 + z**2 / images))


@pytest.mark.parametrize("values", [[75.0], [75.0, 75.0]])
def test_without_spread_over_seeds_the_images_error_counts_and_says_so(values: list[float]) -> None:
    found = alone(values, 74.0, images=50_000)
    low, high = wilson(0.75, 50_000)
    assert found.by_images
    assert (found.low, found.high) == (pytest.approx(low - 74), pytest.approx(high - 74))
    error = 100 * math.sqrt(0.74 * 0.26 / 50_000)
    assert found.detectable == pytest.approx(0.5 + (1.959963984540054 + 0.8416212335729143) * error)
    # tested is whether it is more than half a point off: 37,250 images would be just that
    beyond = (37_500 - 37_250) / math.sqrt(50_000 * 0.745 * 0.255)
    assert found.p == pytest.approx(math.erfc(beyond / math.sqrt(2)), rel=0.02)


@pytest.mark.parametrize(("ours", "reported"), [(0.0, 72.72), (100.0, 90.0)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_model_that_is_always_wrong_or_right_is_off(
    ours: float, reported: float, seeds: int
) -> None:
    found = alone([ours] * seeds, reported, images=50_000)
    assert judge(found, found.p) == "off"


@pytest.mark.parametrize("accuracy", [64.33, 72.72, 75.72, 78.52, 81.1])
def test_one_seed_on_imagenet_can_reproduce_a_number(accuracy: float) -> None:
    assert judge(alone([accuracy], accuracy, images=50_000), 1.0) == "reproduced"


@pytest.mark.parametrize("reported", [64.33, 72.72, 75.72, 81.88])
@pytest.mark.parametrize(
    ("gap", "p_holm", "verdict"),
    [(0.0, 1.0, "reproduced"), (-0.4, 1.0, "within noise"), (0.7, 0.8, "within noise"),
     (1.6, 0.0, "off"), (1.6, 0.06, "underpowered")],
)  # fmt: skip
def test_one_seed_on_imagenet_has_every_verdict(
    reported: float, gap: float, p_holm: float, verdict: str
) -> None:
    assert judge(alone([reported + gap], reported, images=50_000, family=12), p_holm) == verdict


@pytest.mark.parametrize(
    ("ours", "verdict"), [(64.33, "reproduced"), (64.83, "reproduced"), (63.8, "off")]
)
def test_evaluation_of_given_weights_has_no_error(ours: float, verdict: str) -> None:
    found = exactly(ours, 64.33)
    assert found.low == found.high == found.difference
    assert found.exact
    assert math.isnan(found.p)  # no test, and no part of a family of tests
    assert judge(found, math.nan) == verdict


def test_detectable_difference_allows_for_the_correction() -> None:
    """In repetitions of a study of nine numbers, all of them tested at the strictest step."""
    rng = np.random.default_rng(4)
    spread, seeds, family = 0.3, 6, 9
    shift = detectable(spread * math.sqrt(1 / seeds + 1), seeds - 1, 0.05 / family)
    draws = [alone(rng.normal(shift, spread, seeds), rng.normal(0, spread)) for _ in range(2000)]
    assert np.mean([d.p < 0.05 / family for d in draws]) == pytest.approx(0.8, abs=0.03)
    one, nine = (alone([70.0, 71.0, 72.0], 70.5, family=size) for size in (1, 9))
    assert nine.detectable > one.detectable


def test_without_any_error_no_interval_is_given() -> None:
    found = alone([75.0], 74.0)
    assert math.isnan(found.low)
    assert judge(found, math.nan) == "underpowered"


@pytest.mark.parametrize(
    ("found", "p_holm", "verdict"),
    [
        (Distance(9, 0.2, -0.1, 0.5, 0.1, 0.4), 0.1, "reproduced"),
        (Distance(9, 0.3, 0.1, 0.5, 0.01, 0.3), 0.01, "reproduced"),
        (Distance(9, 0.3, 0.0, 0.6, 0.04, 0.4), 0.04, "within noise"),
        (Distance(9, 0.8, 0.5, 1.1, 0.001, 0.4), 0.01, "off"),
        (Distance(9, -0.8, -1.1, -0.5, 0.001, 0.4), 0.01, "off"),
        (Distance(9, 0.8, -0.1, 1.7, 0.08, 1.0), 0.2, "within noise"),
        (Distance(9, 0.8, 0.5, 1.1, 0.04, 1.0), 0.2, "underpowered"),
        (Distance(9, 0.45, 0.33, 0.57, 0.001, 0.3), 0.001, "underpowered"),
        (Distance(3, 0.8, -0.5, 2.1, 0.3, 1.1), 0.3, "underpowered"),
    ],
)
def test_first_rule_that_applies_decides(found: Distance, p_holm: float, verdict: str) -> None:
    assert judge(found, p_holm) == verdict


def trials(seeds: int, shift: float, spread: float, cells: int = 9) -> list[list[str]]:
    """1,000 studies of so many cells; the first cell's true accuracy is off by ``shift``."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        truth = rng.uniform(60, 80, cells)
        ours = truth + np.eye(1, cells)[0] * shift
        reported = rng.normal(truth, spread)
        distances = [
            alone(rng.normal(own, spread, seeds), theirs, images=50_000, family=cells)
            for own, theirs in zip(ours, reported, strict=True)
        ]
        adjusted = holm([d.p for d in distances])
        found.append([judge(d, p) for d, p in zip(distances, adjusted, strict=True)])
    return found


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 10])
def test_true_reproduction_is_called_off_in_at_most_one_trial_of_twenty(seeds: int) -> None:
    wrong = sum("off" in v for v in trials(seeds, shift=0.0, spread=0.3, cells=1))
    assert wrong <= 50


def test_many_numbers_together_are_all_spared_in_nineteen_studies_of_twenty() -> None:
    wrong = sum("off" in verdicts for verdicts in trials(10, shift=0.0, spread=0.3, cells=9))
    assert wrong <= 50 + 21  # 50 are to be expected, whose standard error is 7


def test_one_seed_s_numbers_are_spared_each_but_not_all_together() -> None:
    """As the docs say: the correction knows of images, not of the seeds' spread."""
    found = trials(1, shift=0.0, spread=0.3, cells=9)
    assert sum(verdicts.count("off") for verdicts in found) <= 9 * 50
    assert 50 < sum("off" in verdicts for verdicts in found) <= 130


def test_differences_that_should_be_seen_are_seen() -> None:
    """One number alone, 2 points off at a spread of 0.3 and five seeds."""
    seen = sum(v == ["off"] for v in trials(5, shift=2.0, spread=0.3, cells=1))
    assert seen >= 950


def test_detectable_difference_is_shown_in_four_of_five_repetitions() -> None:
    """With the true spread known, the power that is stated is the power that there is."""
    spread, seeds = 0.3, 6
    shift = float(np.mean([alone(x, 0.0).detectable for x in _draws(seeds, spread)]))
    shift *= spread / float(np.mean([x.std(ddof=1) for x in _draws(seeds, spread)]))
    rng = np.random.default_rng(1)
    shown = [
        alone(rng.normal(shift, spread, seeds), rng.normal(0, spread)).p < 0.05 for _ in range(2000)
    ]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)  # 3 standard errors of 2,000 trials


def _draws(seeds: int, spread: float) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.normal(70, spread, seeds) for _ in range(1000)]


VALUES = [
    {"bits": "FP", "method": "fp", "value": 97.1},
    {"bits": "W2A2", "method": "lsq", "value": 60.0},
    {"bits": "W4A4", "method": "statsq", "value": 97.0, "runs": 10},
]


def add_reference(workspace: Workspace, values: list[dict[str, object]], **keys: object) -> None:
    """Give the study something to be held against."""
    known = {"model": "micro", "status": "published", "source": "table 1"}
    reference = {
        "title": "Reported", "dataset": "digits", "measure": "top1", "notes": ["Mind the gap."],
        "values": [known | value for value in values],
    } | keys  # fmt: skip
    path = workspace.root / "config/reference/known.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(reference))


@pytest.fixture
def referring(tmp_path: Path) -> Workspace:
    workspace = synthetic.make_workspace(tmp_path, references=["known"], figures=["accuracy"])
    add_reference(workspace, VALUES)
    synthetic.fill(workspace)
    return workspace


def test_numbers_are_held_against_the_reported_ones_of_their_cells(referring: Workspace) -> None:
    found = hold_against(collect(referring, "small")).set_index("method")
    assert list(found.index) == ["fp", "lsq", "statsq"]
    assert found.loc["fp", "difference"] == pytest.approx(100 * 874 / 900 - 97.1)
    assert found.loc["lsq", "verdict"] == "off"
    assert found.loc["lsq", "source"] == "table 1"


def test_page_and_tables_tell_verdicts_with_their_sources(referring: Workspace) -> None:
    page = build(referring, "small", referring.reports / "small")
    text = page.read_text()
    assert text.index("Against what was reported") < text.index("<h2>Findings")
    assert "published: table 1" in text
    assert "Mind the gap." in text
    markdown = (page.parent / "table.md").read_text()
    assert "(better) | published: table 1 |" in markdown
    assert "Mind the gap." in markdown
    latex = (page.parent / "table.tex").read_text()
    assert latex.count("reported (difference)") == 3
    found = hold_against(collect(referring, "small")).set_index("method")
    assert f"60.00 (+{found.loc['lsq', 'difference']:.2f})" in latex
    assert found.loc["lsq", "seeds"] == "0 1 2"
    assert found.loc["lsq", "runs"].count("micro/") == 3
    assert (page.parent / "verdicts.csv").exists()


def test_reference_that_meets_no_cell_is_said_to(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(
        tmp_path, references=["known"], figures=["accuracy"], bits=["W4A4"], methods=["lsq"]
    )
    add_reference(workspace, VALUES[1:])
    synthetic.fill(workspace)
    page = build(workspace, "small", workspace.reports / "small")
    assert "None of the numbers in Reported is about a cell of this study" in page.read_text()


def test_study_without_references_has_no_verdicts(workspace: Workspace, report: Path) -> None:
    assert hold_against(collect(workspace, "small")).empty
    assert "Against what was reported" not in (report / "index.html").read_text()
    assert not (report / "verdicts.csv").exists()


def test_runs_that_are_not_there_leave_a_cell_that_says_why(referring: Workspace) -> None:
    root = referring.results / "runs"
    gone = [cell for cell in referring.grid("small").cells if cell.method == "lsq"]
    for run in (*gone[0].runs, gone[1].runs[0]):
        shutil.rmtree(root / run.id)
    records = collect(referring, "small")
    text = to_markdown(Table.of(records, summarize_cells(records)))
    row = next(line for line in text.splitlines() if line.startswith("| LSQ"))
    assert row.startswith("| LSQ | not run | not run |")
    assert "(n = 2)" in row
    assert "2 of 9 cells miss seeds (2 not run)" in text
    verdicts = verdicts_to_markdown(hold_against(records), [])
    assert "| LSQ | W2A2 | 0 | not run | 60.00 | – | – | not run |" in verdicts
    assert "miss seeds" in build(referring, "small", referring.reports / "small").read_text()


def test_one_seed_of_several_has_the_variance_of_other_cells(referring: Workspace) -> None:
    [cell] = [c for c in referring.grid("small").cells if c.place[1:] == ("W2A2", "lsq")]
    for run in cell.runs[1:]:
        shutil.rmtree(referring.results / "runs" / run.id)
    found = hold_against(collect(referring, "small")).set_index("method").loc["lsq"]
    assert (found["n"], found["verdict"], found["by_images"]) == (1, "off", False)
    assert found["df"] == PRIOR_DF[1]  # the other methods' variances are alike


def test_failed_run_is_the_reason_why_a_later_stage_is_missing(referring: Workspace) -> None:
    root = referring.results / "runs"
    [cell] = [c for c in referring.grid("small").cells if (c.method, c.bits) == ("statsq", "W2A2")]
    run = cell.runs[0]
    shutil.rmtree(root / run.id)
    log = referring.logs / f"{run.id}.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: the disk is full\n")
    assert collect(referring, "small").reasons == {("micro", "W2A2", "statsq"): "failed"}


def test_study_without_any_finished_run_is_refused(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path)
    with pytest.raises(UserError, match="none of its cells has a finished run; train them"):
        collect(workspace, "small")


def test_a_suites_own_earlier_seeds_are_nothing_reported(referring: Workspace) -> None:
    own = {"status": "this suite", "source": "seeds 3 to 9"}
    add_reference(referring, [*VALUES[:2], VALUES[2] | own])
    assert list(hold_against(collect(referring, "small"))["method"]) == ["fp", "lsq"]
    add_reference(referring, [value | own for value in VALUES])
    page = build(Workspace(referring.root), "small", referring.reports / "small")
    assert "Against what was reported" not in page.read_text()
    assert not (page.parent / "verdicts.csv").exists()


@pytest.mark.parametrize(
    ("values", "keys", "message"),
    [
        (VALUES, {"dataset": "imagenet"}, "'known' is about imagenet, but the study trains"),
        ([*VALUES, VALUES[0]], {}, "two values for micro FP fp; allowed: one for each cell"),
        ([VALUES[0] | {"status": "rumoured"}], {}, "status"),
        ([VALUES[0] | {"bits": "W1"}], {}, "bits"),
        ([VALUES[0] | {"method": "lsq"}], {}, "bits FP with method lsq; allowed: FP with fp"),
        ([VALUES[1] | {"method": "fp"}], {}, "bits W2A2 with method fp; allowed: FP with fp"),
        ([VALUES[1] | {"method": "lqs"}], {}, "unknown method 'lqs' (did you mean 'lsq'?"),
        ([VALUES[1] | {"value": 140}], {}, "value"),
        ([VALUES[1] | {"std": 0.2}], {}, "std is the spread of several runs; say of how many"),
        ([VALUES[1] | {"std": 0, "runs": 3}], {}, "std"),
    ],
)
def test_wrong_reference_is_named(
    tmp_path: Path, values: list[dict[str, object]], keys: dict[str, object], message: str
) -> None:
    workspace = synthetic.make_workspace(tmp_path, references=["known"])
    add_reference(workspace, values, **keys)
    with pytest.raises(UserError, match="known") as error:
        workspace.references("small")
    assert message in str(error.value)


def test_unknown_reference_is_named(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, references=["knwon"])
    add_reference(workspace, VALUES)
    with pytest.raises(UserError, match=r"unknown reference 'knwon' \(did you mean 'known'"):
        workspace.references("small")


def test_differences_are_held_against_reported_ones(tmp_path: Path) -> None:
    facts = {"model": "micro", "bits": "W2A2", "status": "third-party", "source": "an account"}
    contrasts = [{"question": "StatsQ over LSQ:", "method": "statsq", "against": "lsq"}]
    workspace = synthetic.make_workspace(
        tmp_path, references=["known"], contrasts=contrasts, figures=["accuracy"]
    )
    values = [
        {**facts, "method": "statsq", "against": "lsq", "value": -60.0},
        {**facts, "method": "statsq+qkr", "against": "lsq", "value": 3.0, "status": "this suite"},
    ]
    add_reference(workspace, values)
    synthetic.fill(workspace)
    workspace = Workspace(workspace.root)
    records = collect(workspace, "small")
    found = compare(records).set_index(["measure", "bits", "method", "against"])
    known = found[found["reported"].notna()]
    assert list(known.index) == [("top1", "W2A2", "statsq", "lsq")]
    assert list(known["against_reported"]) == ["off"]
    assert hold_against(records).empty  # none is about a cell
    page = build(workspace, "small", workspace.reports / "small").read_text()
    assert "−60.00: off (third-party: an account)" in page


def test_interval_of_a_difference_may_lie_below_zero() -> None:
    reported = Reported(2.0, is_difference=True)
    found = distance([-3.0, -2.0, -4.0], reported, Spread(Variance(1.0, 2.0)))
    half = T_2 * math.sqrt(1 / 3 + 1)
    assert (found.low, found.high) == (pytest.approx(-5 - half), pytest.approx(-5 + half))
