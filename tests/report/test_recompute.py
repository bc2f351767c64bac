"""Every committed report has the numbers that its raw records give, by other code than made it."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from ofq.config import Workspace
from ofq.report import build

from tests.report.recompute import check, compare, recomputed
from tests.report.recompute_raw import Study
from tests.support import synthetic

REPORTS = Path(__file__).parents[2] / "reports"
ENDING = ".tar.xz"


@pytest.mark.parametrize(
    "study", [path.name.removesuffix(ENDING) for path in sorted(REPORTS.glob(f"*{ENDING}"))]
)
def test_numbers_of_a_committed_report_are_recomputed_from_its_raw_records(study: str) -> None:
    problems = check(REPORTS / f"{study}{ENDING}", REPORTS / study)
    assert problems == [], "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("runs.csv", r"(?<=,)\d\d\.\d{6}"),
        ("table.csv", r"(?<=,)\d\d\.\d{6}"),
        ("differences.csv", r"(?<=,)\d\.\d{6}"),
        ("differences.csv", r"(?<=,)0\.\d{6}"),
        ("table.md", r"\d\d\.\d\d(?= ± )"),
        ("table.md", r"(?<=correlates by )0\.\d\d"),
        ("table.tex", r"\d\d\.\d\d(?= \\ensuremath)"),
        ("measures.tex", r"\d\.\d\d(?= \\ensuremath)"),
        ("index.html", r"(?<=<td>\+)\d\.\d\d(?=</td>)"),
        ("index.html", r"\d\d\.\d\d(?= ± \d\.\d\d</a>)"),
        ("index.html", r"(?<=\+)\d\.\d\d(?=\spoints \[)"),
        ("index.html", r"(?<=<td>)\d\d\.\d\d(?=</td>)"),
    ],
)
def test_a_wrong_number_is_found(file: str, number: str, tmp_path: Path) -> None:
    report = tmp_path / "digits"
    shutil.copytree(REPORTS / "digits", report)
    text = (report / file).read_text(encoding="utf-8")

    def wrong(match: re.Match[str]) -> str:
        return match[0][:-1] + str((int(match[0][-1]) + 5) % 10)

    altered, count = re.subn(number, wrong, text, count=1)
    assert count == 1
    (report / file).write_text(altered, encoding="utf-8")
    problems = check(REPORTS / f"digits{ENDING}", report)
    assert any(problem.startswith((file, "notes")) for problem in problems)


PAIR = {"method": "statsq", "against": "lsq"}
CLAIM = {"claim": "A | B", "source": "C", "measure": "top1", "margin": 0.5, "test": PAIR}
CLAIMS = {
    "more": {**CLAIM, "expected": "above", "control": {**PAIR, "method": "statsq+qkr"}},
    "less": {**CLAIM, "expected": "below", "bits": "W4A4"},
    "shrinks": {**CLAIM, "expected": "above", "and_bits": "W4A4"},
    "flips": {**CLAIM, "measure": "flips_end", "expected": "below"},
    "alike": {**CLAIM, "expected": "equal", "test": {**PAIR, "against": "statsq+qkr"}},
    "undecided": {**CLAIM, "measure": "flips_mid", "margin": 0.02, "expected": "below"},
    "uncouples": {**CLAIM, "measure": "co_flips", "expected": "equal", "margin": 0.1},
    "at_other_bits": {**CLAIM, "expected": "above", "bits": "W4A4", "test": {"method": "wide"}},
    "of_no_method": {**CLAIM, "expected": "above", "test": {"method": "wider"}},
    "rates": {
        "claim": "D", "source": "E", "measure": "accuracy_by_oscillation", "expected": "below",
    },
}  # fmt: skip
REPORTED = [
    {"bits": "W2A2", "method": "lsq", "value": 84.9},
    {"bits": "W2A2", "method": "statsq", "value": 82.0, "runs": 3, "std": 0.4},
    {"bits": "W4A4", "method": "statsq+qkr", "value": 97.9},
    {"bits": "FP", "method": "fp", "value": 97.1},
]


def _workspace(root: Path, **study: object) -> Workspace:
    """A made-up study that tests claims, and is held against reported numbers."""
    made = synthetic.make_workspace(root, claims=["mine"], references=["theirs"], **study)
    facts = {"model": "micro", "status": "published", "source": "F"}
    files = {
        "claims/mine": {"title": "Mine", "claims": CLAIMS},
        "reference/theirs": {
            "title": "Theirs",
            "dataset": "digits",
            "measure": "top1",
            "values": [facts | value for value in REPORTED],
        },
    }
    for name, content in files.items():
        path = root / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    synthetic.fill(made)
    return made


@pytest.mark.parametrize("seeds", [[0], [0, 1], [0, 1, 2, 3, 4]])
def test_claims_verdicts_and_single_seeds_are_recomputed(seeds: list[int], tmp_path: Path) -> None:
    methods = [*synthetic.STUDY["methods"], "wide"]
    contrasts = [
        {"question": "Q", **PAIR},
        {"question": "R", "method": "statsq+qkr", "against": "statsq"},
    ]
    made = _workspace(
        tmp_path, seeds=seeds, methods=methods, only={"wide": ["W2A2"]}, contrasts=contrasts,
        figures=["claims"], baselines=["lsq", "statsq+qkr"],
    )  # fmt: skip
    report = build(made, "small", made.reports / "small").parent
    study = Study(tmp_path, "small")
    tables = recomputed(study)
    assert {"claims", "verdicts", "baselines"} <= tables.keys()
    problems = compare(study, tables, report)
    assert problems == [], "\n" + "\n".join(problems)
    text = (report / "verdicts.csv").read_text()
    (report / "verdicts.csv").write_text(re.sub(r",84\.9,", ",84.8,", text))
    assert any("84.8" in problem for problem in compare(study, tables, report))
    frame = pd.read_csv(report / "baselines.csv")
    frame.assign(cost=2 * frame["cost"]).to_csv(report / "baselines.csv", index=False)
    problems = compare(study, tables, report)
    for file in ("baselines.csv", "index.html", "table.md"):
        assert any(problem.startswith(file) for problem in problems)
