"""Verdicts on claims: from numbers by seed to a table, and what a file of claims may say."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ofq.config import Workspace
from ofq.config.claims import Claim
from ofq.errors import UserError
from ofq.report import build
from ofq.report.claims import judge, judge_claims, seeds_to_decide
from ofq.report.collect import collect
from ofq.report.figures import FIGURES, NothingToDraw
from ofq.report.statistics import Summary

from tests.support import synthetic

SHIPPED = Path(__file__).parents[2]
PAIR = {"method": "statsq", "against": "lsq"}
BASE = {"claim": "A", "source": "B", "measure": "top1", "margin": 0.5, "test": PAIR}
FILE = {
    "title": "Claims of the test",
    "claims": {
        "more": {**BASE, "expected": "above", "control": {**PAIR, "method": "statsq+qkr"}},
        "less": {**BASE, "expected": "below"},
        "shrinks": {**BASE, "expected": "above", "and_bits": "W4A4"},
        "flips": {**BASE, "measure": "flips_end", "expected": "below"},
        "uncouples": {**BASE, "measure": "co_flips", "expected": "equal", "margin": 0.1},
        "by_oscillation": {
            key: value
            for key, value in (BASE | {"measure": "accuracy_by_oscillation"}).items()
            if key != "test"
        } | {"expected": "below"},
        "elsewhere": {**BASE, "expected": "above", "bits": "W8A8"},
        "of_other_methods": {**BASE, "expected": "above", "test": {"method": "wide"}},
    },
}  # fmt: skip


def claim(expected: str, margin: float = 0.5) -> Claim:
    return Claim.model_validate({**BASE, "expected": expected, "margin": margin})


def summary(mean: float, half: float) -> Summary:
    return Summary(5, mean, half, mean - half, mean + half)


@pytest.mark.parametrize(
    ("expected", "mean", "half", "p", "verdict"),
    [
        ("above", 1.0, 0.4, 0.01, "holds"),
        ("above", -1.0, 0.4, 0.01, "contradicted"),
        ("below", -1.0, 0.4, 0.01, "holds"),
        ("below", 1.0, 0.4, 0.01, "contradicted"),
        ("above", 1.0, 0.4, 0.20, "undecided"),  # not after correction
        ("above", 0.1, 0.3, 0.50, "no difference"),
        ("above", 0.3, 0.6, 0.40, "undecided"),
        ("equal", 0.1, 0.3, 0.50, "holds"),
        ("equal", 1.5, 0.4, 0.01, "contradicted"),
        ("equal", 0.6, 0.4, 0.01, "undecided"),
        ("above", 1.0, math.nan, math.nan, "undecided"),
    ],
)
def test_verdict_follows_from_interval_margin_and_corrected_p(
    expected: str, mean: float, half: float, p: float, verdict: str
) -> None:
    assert judge(claim(expected), summary(mean, half), p) == verdict


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = synthetic.make_workspace(
        tmp_path_factory.mktemp("claims"), claims=["mine"], figures=["claims"]
    )
    path = workspace.root / "config" / "claims" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(json.dumps(FILE))
    workspace = Workspace(workspace.root)
    synthetic.fill(workspace)
    build(workspace, "small", workspace.reports / "small")
    return workspace


@pytest.fixture
def rows(study: Workspace) -> pd.DataFrame:
    return pd.read_csv(study.reports / "small" / "claims.csv").set_index("claim")


def test_claims_for_which_the_study_has_methods_and_bits_are_judged(rows: pd.DataFrame) -> None:
    assert list(rows.index) == ["more", "less", "shrinks", "flips", "uncouples", "by_oscillation"]


def test_difference_is_that_of_the_paired_differences(study: Workspace, rows: pd.DataFrame) -> None:
    found = pd.read_csv(study.reports / "small" / "differences.csv")
    at = found.set_index(["measure", "bits", "method", "against"])
    names = {"mean": "difference", "low": "low", "high": "high", "p": "p"}
    expected = at.loc[("top1", "W2A2", "statsq", "lsq")]
    for theirs, ours in names.items():
        assert rows.loc["more", ours] == pytest.approx(float(expected[theirs]))
    runs = pd.read_csv(study.reports / "small" / "runs.csv")
    top1 = runs[runs["bits"] == "W2A2"].pivot_table(values="top1", index="seed", columns="method")
    control = (top1["statsq+qkr"] - top1["lsq"]).mean()
    assert rows.loc["more", "control_difference"] == pytest.approx(control)


def test_change_with_bits_has_the_interval_of_seeds_that_split_anew(
    study: Workspace, rows: pd.DataFrame
) -> None:
    runs = pd.read_csv(study.reports / "small" / "runs.csv")
    top1 = runs.pivot_table(values="top1", index=["bits", "seed"], columns="method")
    gains = top1["statsq"] - top1["lsq"]
    values = gains["W2A2"] - gains["W4A4"]
    error = values.std() * math.sqrt(1 / 3 + 900 / 897)
    low, high = stats.t.interval(0.95, 2, values.mean(), error)
    found = rows.loc["shrinks", ["difference", "low", "high"]].to_numpy(float)
    np.testing.assert_allclose(found, [values.mean(), low, high], rtol=1e-9)


def test_correlation_is_spearmans_over_methods_in_each_seed(
    study: Workspace, rows: pd.DataFrame
) -> None:
    runs = pd.read_csv(study.reports / "small" / "runs.csv")
    runs = runs[(runs["bits"] == "W2A2") & runs["oscillation_rate_mid"].notna()]
    runs = runs[runs["method"] != "statsq+qkr+cga"]  # has the oscillation mid-run of statsq+qkr
    values = [
        stats.spearmanr(of_seed["top1"], of_seed["oscillation_rate_mid"]).statistic
        for _, of_seed in runs.groupby("seed")
    ]
    assert rows.loc["by_oscillation", "difference"] == pytest.approx(np.mean(values))


def test_opposite_claims_get_opposite_verdicts(rows: pd.DataFrame) -> None:
    assert {rows.loc["more", "verdict"], rows.loc["less", "verdict"]} in (
        {"holds", "contradicted"},
        {"undecided"},
    )
    assert rows.loc["uncouples", "verdict"] == "undecided"  # equal in all seeds: no interval


def test_page_and_markdown_show_the_verdicts(study: Workspace, rows: pd.DataFrame) -> None:
    page = (study.reports / "small" / "index.html").read_text()
    assert page.index('<ul class="claims">') < page.index("<h2>Findings</h2>")
    assert f'<span class="verdict {rows.loc["more", "verdict"]}">' in page
    markdown = (study.reports / "small" / "table.md").read_text()
    assert markdown.index("## Claims\n") < markdown.index("## Table\n")


def test_forest_plot_shows_each_claim_that_has_an_interval(
    study: Workspace, rows: pd.DataFrame
) -> None:
    axes = FIGURES["claims"](collect(study, "small")).figure.axes[0]
    labels = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert labels == list(rows.loc[rows["low"].notna(), "text"])


@pytest.mark.parametrize(("std", "margin"), [(1.0, 0.5), (0.2, 0.5), (40.0, 0.5)])
def test_seeds_to_decide_are_the_fewest_that_show_the_margin(std: float, margin: float) -> None:
    needed = seeds_to_decide(claim("above", margin), Summary(3, 0.1, std), 0.0)
    if std == 40.0:
        assert needed is None  # more than 1,000
        return
    errors = {n: std / math.sqrt(n) for n in (needed - 1, needed)}
    powers = {}
    for n, error in errors.items():
        if n >= 2:
            critical = stats.t.ppf(0.975, n - 1)
            powers[n] = stats.nct.sf(critical, n - 1, margin / error)
    assert powers[needed] >= 0.799
    assert powers.get(needed - 1, 0.0) < 0.801


def test_claim_on_what_the_runs_did_not_record_is_not_tested(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(
        tmp_path, recording={}, claims=["mine"], bits=["W2A2"], figures=["accuracy"]
    )
    path = tmp_path / "config" / "claims" / "mine.yaml"
    path.parent.mkdir()
    claims = {
        name: {**BASE, "expected": "above", "measure": name} for name in ("co_flips", "noise_gain")
    }
    path.write_text(json.dumps({"title": "T", "claims": claims}))
    synthetic.fill(workspace)
    found = judge_claims(collect(workspace, "small"))
    assert found["verdict"].tolist() == ["not tested", "not tested"]
    assert found["seeds"].tolist() == [0, 0]


def test_study_without_claims_has_no_forest_plot(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, bits=["W2A2"], methods=["lsq"])
    synthetic.fill(workspace)
    with pytest.raises(NothingToDraw, match="tests no claim"):
        FIGURES["claims"](collect(workspace, "small"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expected": "equal", "margin": 0}, "expected: equal needs a 'margin' above 0"),
        ({"test": None}, "measure top1: 'test' is missing"),
        ({"measure": "accuracy_by_oscillation"}, "leave 'test' out"),
        ({"test": {"method": "statsk"}}, "unknown method 'statsk' \\(did you mean 'statsq'"),
        (
            {"measure": "accuracy_by_oscillation", "test": None, "control": PAIR},
            "leave 'control' out",
        ),
        ({"measure": "top5"}, "measure"),
    ],
)
def test_mistake_in_a_claim_names_file_and_key(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    workspace = synthetic.make_workspace(tmp_path, claims=["mine"])
    path = tmp_path / "config" / "claims" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(
        json.dumps({"title": "T", "claims": {"c": {**BASE, "expected": "above"} | change}})
    )
    with pytest.raises(UserError, match=message) as error:
        workspace.claims("small")
    assert str(path) in str(error.value)


def test_shipped_claims_name_methods_that_exist() -> None:
    workspace = Workspace(SHIPPED)
    named = [name for name in workspace.study_names if workspace.study(name).claims]
    assert named
    for name in named:
        assert workspace.claims(name)
