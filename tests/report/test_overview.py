"""The page of all studies."""

import json
from pathlib import Path

import pytest

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.report import build
from ofq.report.overview import write_overview

from tests.support import synthetic
from tests.support.report_files import tables_of

CLAIM = {
    "claim": "StatsQ <is> better", "source": "A paper", "measure": "top1", "margin": 0.5,
    "expected": "above", "test": {"method": "statsq", "against": "lsq"},
}  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Workspace:
    """Two studies, one of which has runs and a claim."""
    workspace = synthetic.make_workspace(tmp_path, claims=["mine"], figures=["claims"])
    claims = workspace.root / "config" / "claims" / "mine.yaml"
    claims.parent.mkdir()
    claims.write_text(json.dumps({"title": "T", "claims": {"better": CLAIM}}))
    study = workspace.root / "config" / "studies" / "small.yaml"
    other = json.dumps({"extends": "small", "title": "Another", "seeds": [7]})
    study.with_name("other.yaml").write_text(other)
    synthetic.fill(workspace)
    build(Workspace(workspace.root), "small", workspace.reports / "small")
    return Workspace(workspace.root)


def test_studies_have_their_state_claims_and_a_link(made: Workspace) -> None:
    page = write_overview(made)
    assert page == made.reports / "index.html"
    [table] = tables_of(page)
    other, small = table.rows
    assert (other["report"], other["claims"]) == ("no report yet", "–")
    assert small["report"] == "9 cells"
    verdict = (made.reports / "small" / "claims.csv").read_text().splitlines()[1].split(",")
    assert small["claims"].endswith("StatsQ <is> better (W2A2)")
    assert small["claims"].removesuffix(" StatsQ <is> better (W2A2)") in verdict
    text = page.read_text()
    assert text.count("href=") == 1
    assert 'href="small/index.html"' in text


def test_missing_seeds_are_counted(made: Workspace) -> None:
    run = made.grid("small").cells[-1].runs[0]
    (made.results / "runs" / run.id / "result.json").unlink()
    build(Workspace(made.root), "small", made.reports / "small")
    [table] = tables_of(write_overview(made))
    assert table.rows[1]["report"] == "1 of 9 cells miss seeds"


def test_study_whose_file_is_wrong_is_named(made: Workspace) -> None:
    path = made.root / "config" / "studies" / "broken.yaml"
    path.write_text("title: no more")
    assert "broken.yaml" in write_overview(Workspace(made.root)).read_text()


def test_damaged_report_is_an_error_that_says_what_to_do(made: Workspace) -> None:
    (made.reports / "small" / "table.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="`ofq report small` makes the report anew"):
        write_overview(made)
