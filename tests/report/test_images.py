import math
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofq.report.collect import Records, collect
from ofq.report.compare import compare
from ofq.report.statistics import mcnemar

from tests.support import synthetic

MARKS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(MARKS)
def test_mcnemar_is_the_exact_binomial_test_of_the_disagreements(marks: list[tuple]) -> None:
    one, other = (np.array(side, dtype=bool) for side in zip(*marks, strict=True))
    found = mcnemar(one, other)
    gained = sum(a and not b for a, b in marks)
    lost = sum(b and not a for a, b in marks)
    assert (found.gained, found.lost) == (gained, lost)
    n = gained + lost
    if n == 0:
        assert math.isnan(found.p)
        return
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert found.p == pytest.approx(min(1.0, 2 * tail))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """A study of one seed, with one contrast."""
    contrasts = [{"question": "?", "method": "statsq", "against": "lsq"}]
    workspace = synthetic.make_workspace(
        tmp_path_factory.mktemp("single"), seeds=[0], figures=["accuracy"], contrasts=contrasts
    )
    synthetic.fill(workspace)
    return collect(workspace, "small")


def test_disagreements_are_counted_where_there_is_one_seed(
    single: Records, records: Records
) -> None:
    assert compare(records)["gained"].isna().all()
    found = compare(single).query("measure == 'top1' and bits == 'W2A2'").iloc[0]
    cells = {c.method: c for c in single.cells if c.bits == "W2A2"}
    one, other = (synthetic.right(cells[found[side]].runs[0]) for side in ("method", "against"))
    assert found["gained"] == (one & ~other).sum() > found["lost"]
    assert found["lost"] == (other & ~one).sum()


def test_disagreements_of_contrasts_are_corrected_for_their_number(single: Records) -> None:
    pairs = compare(single).query("measure == 'top1'")
    primary = pairs["family"] == "primary"
    assert primary.sum() == 2  # at two bits
    assert pairs.loc[~primary, "p_mcnemar_holm"].isna().all()
    smallest = pairs.loc[primary, "p_mcnemar"].min()
    assert smallest < 0.05
    assert pairs["p_mcnemar_holm"].min() == pytest.approx(2 * smallest)


def test_runs_that_kept_nothing_are_not_compared_by_images(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=["lsq", "statsq"], seeds=[0])
    synthetic.fill(workspace)
    [cell] = [c for c in workspace.grid("small").cells if (c.method, c.bits) == ("lsq", "W2A2")]
    for run in cell.runs:
        folder = workspace.results / "runs" / run.id
        (folder / "correct.npy").unlink()
        synthetic.vouch(folder)
    rows = compare(collect(workspace, "small")).query("measure == 'top1'").set_index("bits")
    assert math.isnan(rows.loc["W2A2", "gained"])
    assert rows.loc["W4A4", "gained"] > 0
