"""A run keeps its id: results that exist are found again after the package has changed."""

from pathlib import Path

from ofq.config import Workspace

ROOT = Path(__file__).parents[2]
IDS = Path(__file__).with_name("run_ids.txt").read_text().split()


def test_runs_of_the_committed_studies_keep_their_ids():
    """``run_ids.txt`` is never regenerated; a study that is removed takes its ids with it."""
    workspace = Workspace(ROOT)
    found = {run for name in workspace.study_names for run in workspace.grid(name).runs()}
    assert len(IDS) == 488
    assert set(IDS) <= found
