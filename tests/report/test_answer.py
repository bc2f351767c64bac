"""The sentence that a report opens with."""

from pathlib import Path

import pandas as pd
import pytest

from ofq.config import Run, Workspace
from ofq.report import build
from ofq.report.answer import answer
from ofq.report.collect import collect
from ofq.report.compare import compare, summarize_cells

from tests.support import synthetic

NOISE = {0: -1, 1: 0, 2: 1}  # whole percents, which 900 images have


def top1(gain: float, spread: float = 2.0) -> synthetic.Top1:
    """StatsQ gains as much over LSQ at 60 %; full precision has 90 %."""

    def known(run: Run) -> float:
        if run.config.stage == "fp":
            return 90.0
        if synthetic.quantizer(run) == "lsq":
            return 60.0 + NOISE[run.config.seed]
        return 60.0 + gain + spread * NOISE[run.config.seed]

    return known


def told(folder: Path, known: synthetic.Top1, **study: object) -> str:
    workspace = synthetic.make_workspace(folder, **{"methods": ["lsq", "statsq"]} | study)
    synthetic.fill(workspace, known)
    records = collect(workspace, "small")
    return answer(records, summarize_cells(records), compare(records))


CONTRAST = [{"question": "Better?", "method": "statsq", "against": "lsq"}]


def test_difference_that_holds_is_told_with_its_interval(tmp_path: Path) -> None:
    text = told(tmp_path, top1(20.0), contrasts=CONTRAST)
    start, _, rest = text.partition(" [")
    assert start == "On scikit-learn's digits at W2A2, StatsQ is 20.00"
    ends, _, rest = rest.partition("]")
    low, high = (float(end) for end in ends.split(","))
    assert 0 < low < 20 < high < 40
    assert low + high == pytest.approx(40, abs=0.02)
    distance = "points above LSQ; it is 10.00 points below full precision. At W4A4 +20.00 points"
    assert " ".join(rest.split()).startswith(distance)


def test_difference_below_zero_has_its_ends_in_order(tmp_path: Path) -> None:
    text = told(tmp_path, top1(-20.0), contrasts=CONTRAST)
    ends = text.partition("[")[2].partition("]")[0]
    low, high = (float(end) for end in ends.split(","))
    assert 0 < low < 20 < high
    assert "below LSQ; it is 50.00" in text


def test_difference_that_is_not_shown_is_no_difference_in_the_sentence(tmp_path: Path) -> None:
    text = told(tmp_path, top1(1.0, 6.0), contrasts=CONTRAST)
    assert "StatsQ can't be told from LSQ (+1.00" in text


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    text = told(tmp_path, top1(2.0), seeds=[1], bits=["W2A2"])
    assert "is 2.00\N{NO-BREAK SPACE}points above LSQ (1 seed, no interval); it is 28.00" in text


def test_first_contrast_is_what_is_answered(tmp_path: Path) -> None:
    pair = [{"question": "Worse?", "method": "lsq", "against": "statsq"}]
    assert "LSQ is 20.00" in told(tmp_path, top1(20.0), contrasts=pair)


def test_each_model_of_several_has_a_sentence(tmp_path: Path) -> None:
    text = told(tmp_path, top1(20.0), models=["micro", "macro"])
    assert text.count("On scikit-learn's digits with m") == 2
    assert "W4A4" not in text


def test_study_of_one_method_tells_its_numbers(tmp_path: Path) -> None:
    text = told(tmp_path, top1(2.0), methods=["statsq"])
    assert (
        text == "On scikit-learn's digits, StatsQ has a top-1 (%) of 62.00 at W2A2, 62.00 at W4A4."
    )


def test_page_and_markdown_open_with_it(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, contrasts=CONTRAST)
    synthetic.fill(workspace, top1(20.0))
    page = build(workspace, "small", workspace.reports / "small")
    text = page.read_text()
    place = text.index('<p class="answer">On scikit-learn')
    assert text.index("<h1>") < place < text.index("<table")
    markdown = page.with_name("table.md").read_text().splitlines()
    assert markdown[2].startswith("On scikit-learn's digits at W2A2")


def test_study_without_a_finished_pair_has_no_answer(workspace: Workspace) -> None:
    records = collect(workspace, "small")
    nothing = compare(records).head(0)
    assert answer(records, summarize_cells(records), nothing) == ""
    assert isinstance(nothing, pd.DataFrame)
