"""The committed reports are what their committed bundles give."""

from pathlib import Path

import pandas as pd
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
    bundled, committed = (contents(place / study) for place in (there.reports, REPORTS))
    again = build(there, study, there.reports / study).parent
    made = contents(again)
    assert made.keys() == committed.keys()
    for path in again.glob("*.parquet"):  # its header names the versions of what wrote it
        pd.testing.assert_frame_equal(
            pd.read_parquet(path), pd.read_parquet(REPORTS / study / path.name), check_exact=True
        )
        made[path.name] = committed[path.name]
    changed = sorted(name for name in made if made[name] != committed[name])
    assert changed == [], f"`make samples` renews {study}"
    assert bundled == committed


def test_committed_reports_and_bundles_stay_below_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in REPORTS.rglob("*") if path.is_file()) < 10e6
