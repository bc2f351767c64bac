"""The committed reports are what their committed bundles give."""

from pathlib import Path

import pytest

from ofq.report import build
from ofq.report.bundle import ENDING, unbundle

from tests.support.report_files import contents

REPORTS = Path(__file__).parents[2] / "reports"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "study", [path.name.removesuffix(ENDING) for path in sorted(REPORTS.glob(f"*{ENDING}"))]
)
def test_committed_report_is_made_again_from_its_bundle(study: str, tmp_path: Path) -> None:
    there = unbundle(REPORTS / f"{study}{ENDING}", tmp_path / study)
    assert not there.reports.exists()  # it is committed once
    committed = contents(REPORTS / study)
    made = contents(build(there, study, there.reports / study).parent)
    # figures are within the page, and frames are CSV files, too
    printed = {name for name in made if "/" not in name and not name.endswith(".parquet")}
    assert committed.keys() == printed
    changed = sorted(name for name in printed if made[name] != committed[name])
    assert changed == [], f"`make samples` renews {study}"


def test_committed_reports_and_bundles_stay_below_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in REPORTS.rglob("*") if path.is_file()) < 6e6
