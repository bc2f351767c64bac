"""Methods beside a study's baselines: known numbers in, the same numbers out.

``test_recompute.py`` recomputes intervals, oscillation and cost by other code.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from ofq.config import Run, Workspace
from ofq.config.targets import Targets
from ofq.report import build
from ofq.report.bundle import bundle, unbundle

from tests.support import synthetic
from tests.support.report_files import contents, tables_of

TITLE = "Methods side by side"
METHODS = ["lsq", "statsq", "statsq+qkr+cga"]


def known_top1(run: Run) -> float:
    """StatsQ adds 3 and 0.1 per seed, CGA 1 more; seeds shift all methods alike."""
    statsq, seed = synthetic.quantizer(run) == "statsq", run.config.seed
    return 80 + seed + (3 + 0.1 * seed) * statsq + (run.config.stage == "cga")


def make(root: Path, **study: object) -> Workspace:
    parts = {"bits": ["W2A2"], "methods": METHODS, "baselines": ["lsq", "statsq"]}
    workspace = synthetic.make_workspace(root, figures=["accuracy"], **{**parts, **study})
    synthetic.fill(workspace, known_top1)
    return workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make(tmp_path_factory.mktemp("baselines"))


@pytest.fixture(scope="module")
def page(made: Workspace) -> Path:
    return build(made, "small", made.reports / "small")


def rows_of(page: Path) -> dict[str, dict[str, str]]:
    [found] = [table for table in tables_of(page) if table.heading == TITLE]
    return {row["method"]: row for row in found.rows}


def test_numbers_are_those_that_were_put_in(page: Path) -> None:
    found = pd.read_csv(page.with_name("baselines.csv")).set_index("method")
    # over seeds 0, 1 and 2
    assert list(found["top1_mean"]) == pytest.approx([81, 84.1, 85.1])
    assert found.loc["statsq+qkr+cga", "over_lsq_mean"] == pytest.approx(4.1)
    assert found.loc["statsq+qkr+cga", "over_statsq_mean"] == pytest.approx(1)
    assert found.loc["lsq", "over_statsq_mean"] == pytest.approx(-3.1)
    assert pd.isna(found.loc["statsq", "over_statsq_mean"])
    assert list(found["cost"]) == pytest.approx([1, 1.2, 1.2 * 1.25])  # seed 1 was slowed by others
    assert list(found["epochs"]) == [4, 4, 6]


def test_differences_are_those_of_the_study_s_other_tables(page: Path) -> None:
    pairs = pd.read_csv(page.with_name("differences.csv")).query("measure == 'top1'")
    known = pairs.query("against == 'lsq'").set_index("method")
    found = pd.read_csv(page.with_name("baselines.csv")).set_index("method").loc[known.index]
    for part in ("n", "mean", "low", "high"):
        assert list(found[f"over_lsq_{part}"]) == pytest.approx(list(known[part]))
    assert len(known) == 2


def test_page_and_markdown_print_the_table_and_say_who_trained_longer(page: Path) -> None:
    row = rows_of(page)["StatsQ + QKR + CGA (OFQ)"]
    assert row["over LSQ"].startswith("+4.10 [+")
    assert (row["epochs"], row["cost"], row["over StatsQ"][:5]) == (
        "6",
        "1.50 (1.50-2.25)",
        "+1.00",
    )
    text = page.with_name("table.md").read_text()
    for shown in (text, page.read_text()):
        assert "Methods with more of them trained longer" in shown
        assert "median of 3 runs (and quartiles), recorded while they trained" in shown
    assert f"## {TITLE}" in text
    assert f"| {row['over LSQ']} |" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_bundle_gives_the_same_table(made: Workspace, page: Path, tmp_path: Path) -> None:
    bundle(made, "small", tmp_path / "small.tar.xz")
    elsewhere = unbundle(tmp_path / "small.tar.xz", tmp_path / "elsewhere")
    again = build(elsewhere, "small", tmp_path / "again")
    for name in ("baselines.csv", "table.md"):
        assert contents(again.parent)[name] == contents(page.parent)[name]


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    workspace = make(tmp_path, seeds=[0])
    for run in workspace.grid("small").runs().values():
        folder = workspace.results / "runs" / run.id
        if run.config.stage == "cga":
            shutil.rmtree(folder)
            continue
        path = folder / "provenance.json"
        record = json.loads(path.read_text())
        del record["attempts"][0]["devices"]
        path.write_text(json.dumps(record))
        synthetic.vouch(folder)
    page = build(workspace, "small", workspace.reports / "small")
    rows = rows_of(page)
    missing = rows["StatsQ + QKR + CGA (OFQ)"]
    assert (missing["top-1 (%)"], missing["over LSQ"], missing["epochs"]) == ("not run", "–", "–")
    assert (rows["StatsQ"]["cost"], rows["StatsQ"]["over LSQ"]) == ("–", "+3.00")
    assert "Cost: not known" in page.read_text()


def test_study_without_baselines_has_no_such_table(report: Path) -> None:
    assert not list(report.glob("baselines*"))
    assert TITLE not in report.joinpath("index.html").read_text()
    assert TITLE not in report.joinpath("table.md").read_text()


def test_workflow_expects_the_tables_of_a_study_with_baselines(made: Workspace) -> None:
    config = made.root / "config"
    plain = json.loads((config / "studies/small.yaml").read_text()) | {"baselines": []}
    (config / "studies/plain.yaml").write_text(json.dumps(plain))
    targets = Targets(made.root)
    added = set(targets.tables("small")) - {
        name.replace("/plain/", "/small/") for name in targets.tables("plain")
    }
    assert {Path(name).name for name in added} == {"baselines.csv", "baselines.parquet"}
