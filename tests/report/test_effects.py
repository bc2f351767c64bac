from itertools import product
from pathlib import Path

import pytest

from ofq.config import Run, Workspace
from ofq.errors import UserError
from ofq.report import build
from ofq.report.collect import collect
from ofq.report.compare import pairs
from ofq.report.effects import effect_rows, effects

from tests.support import synthetic
from tests.support.report_files import tables_of

METHODS = ["lsq", "statsq", "lsq+qkr", "statsq+qkr"]
FACTORS = {"StatsQ": ["statsq", "statsq+qkr"], "QKR": ["lsq+qkr", "statsq+qkr"]}


def known_top1(run: Run) -> float:
    """StatsQ adds 3 and 0.1 per seed, QKR 1, both 2 more; seeds shift all methods alike."""
    statsq, qkr = synthetic.quantizer(run) == "statsq", synthetic.has_qkr(run)
    seed = run.config.seed
    return 80 + seed + 3 * statsq + qkr + 2 * (statsq and qkr) + 0.1 * seed * statsq


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = synthetic.make_workspace(
        tmp_path, bits=["W2A2"], methods=METHODS, factors=FACTORS, figures=["accuracy"]
    )
    synthetic.fill(made, known_top1)
    return made


def test_effects_are_those_that_were_put_in(workspace: Workspace) -> None:
    found = effects(collect(workspace, "small")).query("measure == 'top1'").set_index("effect")
    means = [known_mean(*levels) for levels in product((0, 1), (0, 1))]
    none, qkr, statsq, both = means
    assert found.loc["StatsQ", "mean"] == pytest.approx((statsq + both - none - qkr) / 2)
    assert found.loc["QKR", "mean"] == pytest.approx((qkr + both - none - statsq) / 2)
    assert found.loc["StatsQ × QKR", "mean"] == pytest.approx((both - qkr - statsq + none) / 2)
    assert found.loc["StatsQ", "std"] == pytest.approx(0.1)
    assert found.loc["StatsQ", "verdict"] == "holds"
    assert list(found["n"]) == [3, 3, 3]


def known_mean(statsq: int, qkr: int) -> float:
    """The mean of seeds 0, 1 and 2."""
    return 81 + 3 * statsq + qkr + 2 * statsq * qkr + 0.1 * statsq


def test_methods_that_differ_in_one_factor_are_compared(workspace: Workspace) -> None:
    study = collect(workspace, "small").study
    assert set(pairs(study)) == {
        ("statsq", "lsq"),
        ("statsq+qkr", "lsq+qkr"),
        ("lsq+qkr", "lsq"),
        ("statsq+qkr", "statsq"),
        ("statsq+qkr", "lsq"),  # all against none
    }
    three = {name: [m for m in synthetic.FACTORIAL if part in m] for name, part in (
        ("StatsQ", "statsq"), ("QKR", "qkr"), ("CGA", "cga"),
    )}  # fmt: skip
    update = {"methods": [*synthetic.FACTORIAL], "factors": three}
    found = pairs(study.model_copy(update=update))
    assert len(found) == len(set(found)) == 3 * 4 + 1
    assert ("statsq+qkr+cga", "statsq+qkr") in found
    assert ("statsq+cga", "lsq+qkr+cga") not in found


def test_findings_are_what_techniques_do_alone_and_together(workspace: Workspace) -> None:
    page = build(workspace, "small", workspace.reports / "small")
    [found] = [t for t in tables_of(page) if t.heading == "Findings"]
    top1 = [row for row in found.rows if row["measure"] == "top-1"]
    assert {row["methods"] for row in top1} == {
        f"{one} against {other}"
        for one, other in (
            ("StatsQ", "LSQ"), ("StatsQ + QKR", "LSQ + QKR"), ("LSQ + QKR", "LSQ"),
            ("StatsQ + QKR", "StatsQ"), ("StatsQ + QKR", "LSQ"),
        )
    }  # fmt: skip


def test_effects_are_printed_like_other_tests(workspace: Workspace) -> None:
    records = collect(workspace, "small")
    rows = {row["effect"]: row for row in effect_rows(records, effects(records))}
    assert rows["StatsQ"]["p_holm"] == "< 0.001"
    assert rows["QKR"]["p_holm"] == "< 0.001"  # equal in all seeds, but other residuals aren't
    assert (rows["StatsQ"]["mean"], rows["QKR"]["mean"]) == ("+4.10", "+2.00")


def test_page_and_file_tell_effects(workspace: Workspace) -> None:
    page = build(workspace, "small", workspace.reports / "small")
    assert "<h2>Effects</h2>" in page.read_text()
    assert "StatsQ × QKR" in page.with_name("effects.csv").read_text()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"StatsQ": ["statsq"]}, "4 methods make 2 combinations; needed: each of the 2"),
        (FACTORS | {"CGA": []}, "4 methods make 4 combinations; needed: each of the 8"),
        ({"StatsQ": ["statq"]}, "'statq' is not among the study's methods"),
    ],
)
def test_factors_that_make_no_grid_are_refused(
    tmp_path: Path, factors: dict[str, list[str]], message: str
) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=METHODS, factors=factors)
    with pytest.raises(UserError, match=message):
        workspace.study("small")
