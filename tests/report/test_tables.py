import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ofq.config import Run, Workspace
from ofq.report import build
from ofq.report.blocks import Blocks
from ofq.report.collect import Records, collect
from ofq.report.compare import compare, summarize_cells
from ofq.report.formats import Tables, write_tables
from ofq.report.latex import escape_latex, measures_to_latex, to_latex
from ofq.report.measures import OSCILLATION_MID, p_text
from ofq.report.statistics import holm
from ofq.report.tables import (
    Entry,
    Row,
    Table,
    escape_markdown,
    to_markdown,
    verdicts_to_markdown,
)
from ofq.runs.folder import RunFolder

from tests.support import synthetic

NO_VERDICTS = pd.DataFrame({"model": []})
PEAK = {0: 80.0, 1: 82.0, 2: 84.0}


def known_top1(run: Run) -> float:
    """At W2A2 every technique adds 5 ± 0.1 points to LSQ's 80, 82, 84."""
    config = run.config
    statsq = synthetic.quantizer(run) == "statsq"
    added = 5 * (statsq + synthetic.has_qkr(run) + (config.stage == "cga"))
    return PEAK[config.seed] + added + 0.1 * config.seed * (added > 0)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Records:
    workspace = synthetic.make_workspace(
        tmp_path_factory.mktemp("known"),
        methods=["lsq", "statsq"],
        contrasts=[{"question": "StatsQ's gain?", "method": "statsq", "against": "lsq"}],
    )
    synthetic.fill(workspace, known_top1)
    return collect(workspace, "small")


def test_table_prints_hand_computed_means_and_deviations(known: Records) -> None:
    text = to_markdown(Table.of(known, summarize_cells(known)))
    rows = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines()}
    assert rows["| Full precision"][1] == "82.00 ± 2.00"
    assert rows["| LSQ"][1] == "82.00 ± 2.00"
    assert rows["| StatsQ"][1] == "**87.10 ± 2.10**"


def test_differences_are_taken_seed_by_seed(known: Records) -> None:
    found = compare(known)
    row = found[(found["measure"] == "top1") & (found["bits"] == "W2A2")].iloc[0]
    assert (row["method"], row["against"], row["n"]) == ("statsq", "lsq", 3)
    assert row["mean"] == pytest.approx(5.1)
    assert row["std"] == pytest.approx(0.1)
    # two bits with two degrees of freedom each, of one variance; the seeds re-split the images
    assert row["df"] == 4
    half = 2.7764451051977987 * 0.1 * math.sqrt(1 / 3 + 900 / 897)
    assert row["high"] - row["mean"] == pytest.approx(half)
    assert (row["family"], row["verdict"]) == ("primary", "holds")
    # 82 ± 2 against 87.1 ± 2.1, exactly in step
    assert row["correlation"] == pytest.approx(1.0)


def test_every_method_meets_its_predecessor_and_the_first(records: Records) -> None:
    found = compare(records)
    mine = found[(found["measure"] == "top1") & (found["bits"] == "W4A4")]
    assert list(zip(mine["method"], mine["against"], strict=True)) == [
        ("statsq", "lsq"),
        ("statsq+qkr", "statsq"),
        ("statsq+qkr+cga", "statsq+qkr"),
        ("statsq+qkr", "lsq"),
        ("statsq+qkr+cga", "lsq"),
    ]


def test_oscillation_is_read_at_qats_median_epoch_and_at_the_last_stages_end(
    workspace: Workspace, records: Records
) -> None:
    runs = records.of(records.runs, bits="W2A2", seed=1).set_index("method")
    parent = runs.loc["statsq+qkr"]
    annealed = runs.loc["statsq+qkr+cga"]
    rows = pd.read_parquet(workspace.results / "runs" / parent["run"] / "metrics.parquet")
    rates = rows.set_index("epoch")["oscillation_rate"]
    assert parent["oscillation_rate_mid"] == annealed["oscillation_rate_mid"] == rates[2]
    assert parent["oscillation_rate_end"] == rates[synthetic.EPOCHS]
    assert annealed["oscillation_rate_end"] < 0.2


def test_annealing_goes_on_where_qat_ended(records: Records) -> None:
    mine = records.of(records.metrics, bits="W2A2", seed=0, method="statsq+qkr+cga")
    assert list(mine["epoch"]) == [0, 1, 2, 3, 4, 5, 6]
    assert list(mine["step"]) == [synthetic.STEPS * epoch for epoch in range(7)]
    assert list(mine["stage"]) == ["qat"] * 5 + ["cga"] * 2


def test_run_whose_parent_has_no_result_is_damaged(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, seeds=[0], figures=["accuracy"])
    synthetic.fill(workspace)
    annealed = workspace.grid("small").cells[-1].runs[0]
    assert annealed.parent is not None
    (workspace.results / "runs" / annealed.parent.id / "result.json").unlink()
    records = collect(workspace, "small")
    assert list(records.damaged) == [annealed.parent.id]
    assert "missing, but a run that builds on this one has" in str(records.damaged.popitem()[1])
    assert records.reasons["micro", "W4A4", "statsq+qkr+cga"] == "damaged: result.json"


def test_shared_qat_runs_are_not_tested_twice_mid_run(records: Records) -> None:
    found = compare(records)
    middle = found[(found["measure"] == "oscillation_rate_mid") & (found["bits"] == "W2A2")]
    assert list(zip(middle["method"], middle["against"], strict=True)) == [
        ("statsq", "lsq"),
        ("statsq+qkr", "statsq"),
        ("statsq+qkr", "lsq"),
    ]
    blocks = Blocks.of(records, OSCILLATION_MID)
    assert blocks.tables["micro", "W2A2"].shape == (3, 4)
    # of two kinds, each with three seeds of three methods that differ
    assert blocks.pool.kinds["micro", "W2A2"].df <= 2 * (3 - 1) * (3 - 1)


def test_contrasts_are_one_family_and_all_other_pairs_exploratory(tmp_path: Path) -> None:
    stops = {"method": "statsq+qkr+cga", "against": "statsq+qkr", "measure": "oscillation_rate_end"}
    workspace = synthetic.make_workspace(
        tmp_path,
        bits=["W2A2"],
        figures=["accuracy"],
        contrasts=[
            {"question": "Does QKR gain?", "method": "statsq+qkr", "against": "statsq"},
            {"question": "Does CGA stop flips?", **stops},
        ],
    )
    synthetic.fill(workspace)
    records = collect(workspace, "small")
    found = compare(records).set_index(["measure", "method", "against"])
    primary = found[found["family"] == "primary"]
    assert list(primary.index) == [
        ("top1", "statsq+qkr", "statsq"),
        ("oscillation_rate_end", "statsq+qkr+cga", "statsq+qkr"),
    ]
    assert list(primary["p_holm"]) == pytest.approx(holm(primary["p"].tolist()))
    others = found[found["family"] == "exploratory"]
    assert len(others) == 5 + 3 + 5 - 2
    assert others["p_holm"].isna().all()
    assert "holds" not in set(others["verdict"])
    assert primary["verdict"].iloc[1] == "holds"


def test_notes_say_what_seeds_share(known: Records) -> None:
    notes = " ".join(Table.of(known, summarize_cells(known)).notes)
    assert "σ²·(1/n + 1.00) (Nadeau and Bengio 2003)" in notes
    assert "top-1 of two methods correlates by 1.00" in notes


def best(root: Path, gains: dict[str, list[float]]) -> list[str]:
    """The bits at which StatsQ, better than LSQ by so much in each seed, is set bold."""
    workspace = synthetic.make_workspace(
        root, methods=["lsq", "statsq"], bits=list(gains), seeds=[0, 1, 2, 3], figures=["accuracy"]
    )

    def top1(run: Run) -> float:
        better = synthetic.quantizer(run) == "statsq"
        return 80.0 + (gains[str(run.config.bits)][run.config.seed] if better else 0.0)

    synthetic.fill(workspace, top1)
    cells = summarize_cells(collect(workspace, "small"))
    assert not cells.loc[cells["method"] != "statsq", "best"].any()
    return cells.loc[cells["best"], "bits"].tolist()


CLEAR, ONCE_IN_TWENTY, NONE = [12.0, 12.1, 11.9, 12.0], [4.0, 2.6, 4.8, 3.0], [2.0, -1.0, 1.0, -1.5]
TIES, EQUAL = [0.0] * 4, [1.0] * 4


def test_best_is_shown_after_correction_for_all_columns(tmp_path: Path) -> None:
    assert best(tmp_path / "one", {"W2A2": ONCE_IN_TWENTY}) == ["W2A2"]  # p = 0.048
    assert best(tmp_path / "clear", {"W2A2": CLEAR, "W4A4": NONE}) == ["W2A2"]
    for number, other in enumerate([NONE, TIES, EQUAL]):
        assert best(tmp_path / str(number), {"W2A2": ONCE_IN_TWENTY, "W4A4": other}) == []


def test_best_is_better_than_every_other_method(records: Records) -> None:
    cells = summarize_cells(records)
    assert not cells["best"].any()
    assert cells[cells["method"] == "statsq+qkr"]["top1_mean"].notna().all()


def test_csv_keeps_full_precision(report: Path) -> None:
    with (report / "runs.csv").open() as file:
        runs = [r for r in csv.DictReader(file) if (r["bits"], r["method"]) == ("W4A4", "statsq")]
    with (report / "table.csv").open() as file:
        cells = [r for r in csv.DictReader(file) if (r["bits"], r["method"]) == ("W4A4", "statsq")]
    values = [float(run["top1"]) for run in runs]
    assert float(cells[0]["top1_mean"]) == np.mean(values)
    assert float(cells[0]["top1_std"]) == np.std(values, ddof=1)
    assert [run["chain"].count(" > ") for run in runs] == [1, 1, 1]


@pytest.mark.parametrize(
    ("p", "text"),
    [(math.nan, "–"), (0.0009, "< 0.001"), (0.001, "0.001"), (0.0123, "0.012"), (1.0, "1.000")],
)
def test_p_values_are_printed_with_three_digits(p: float, text: str) -> None:
    assert p_text(p) == text


def test_latex_escapes_what_latex_would_read() -> None:
    assert escape_latex("[5] 50 % of A&B_c #1 {x} ~^ \\ α") == (
        r"{[}5] 50 \% of A\&B\_c \#1 \{x\} {\textasciitilde}{\textasciicircum} {\textbackslash} "
        r"\ensuremath{\alpha}"
    )
    table = Table("100 %", ["W2A2"], ["top-1 (%)", "osc. end (%)"], [], 3, "top-1", 2)
    row = Row("m_1", "A & B", [Entry("−1.0 ± 0.1", best=True, cell="x"), Entry("2.0")])
    both = replace(table, rows=[row, replace(row, model="m_2")])
    text = to_latex(both, pd.DataFrame())
    assert r"\multicolumn{2}{l}{\textit{m\_1}} \\" in text
    assert r"A \& B & \textbf{$-$1.0 \ensuremath{\pm} 0.1} \\" in text
    assert "2.0" not in text
    assert r"\multicolumn{2}{l}{\textit{m\_2, W2A2}} \\" in measures_to_latex(both)
    assert r"A \& B & 2.0 \\" in measures_to_latex(both)


def test_markdown_escapes_bars_and_names_models_where_there_are_several() -> None:
    table = Table("T", ["W2A2"], ["top-1 (%)"], [Row("a", "x|y", [Entry("1")])], 1, "top-1", 1)
    assert r"| x\|y | 1 |" in to_markdown(table)
    both = replace(table, rows=[*table.rows, Row("b", "z", [Entry("2")])])
    assert "| b | z | 2 |" in to_markdown(both)


def plain(markdown: str) -> str:
    """Markdown's escapes undone: what its reader is shown."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


@pytest.mark.parametrize(
    "label",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a|b|c",
        "a `code` b",
        "**bold** *it* _it_ __b__ ~~s~~",
        "[text](javascript:alert(1)) ![i](x)",
        "&lt;b&gt; &amp;",
        "$x^2$",
        "# heading #",
        "a\\b\\|c",
        "two\nlines\r\nand\x85more\u2028and",
    ],
)
def test_markdown_shows_labels_as_they_are(label: str) -> None:
    one = " ".join(label.splitlines())
    row = Row("m_", label, [Entry(label, best=True)])
    text = to_markdown(Table(label, [label], [label], [row], 1, "top-1", 1, [label]))
    lines = text.splitlines()
    assert len(lines) == 7
    assert plain(lines[0]) == f"# {one}"
    assert plain(lines[4]) == f"| {one} | **{one}** |"
    special = r"(?<!\\)(?:\\\\)*(?:[<>`|$&]|\](?=[(\[:]))"
    assert re.findall(special, lines[4][2:-2].replace(" | ", "")) == []


@pytest.mark.parametrize("note", ["- item", "1. item", "2) item", "+ item", "    code", "=== x"])
def test_note_begins_no_list_or_code(note: str) -> None:
    text = to_markdown(Table("T", ["W2A2"], ["a"], [], 1, "loss", 1, [note]))
    last = text.splitlines()[-1]
    own = Table("T", ["W2A2"], ["a"], [], 1, "loss", 1, []).notes
    assert last == f"{' '.join(own)} {note}"
    (paragraph,) = verdicts_to_markdown(NO_VERDICTS, [note]).splitlines()[-1:]
    assert not re.match(r"\s|[-+*=]|\d+[.)]", paragraph)
    assert plain(paragraph) == note.strip()


@pytest.mark.parametrize("name", ["fc1.weight", "q_weight", "StatsQ + QKR, BR 0.01", "off by 1.2"])
def test_markdown_leaves_plain_words_alone(name: str) -> None:
    assert escape_markdown(name) == name


def test_spreadsheets_take_no_text_for_a_formula(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "label": ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "＝1", "-1.5", "a=b", None],
            "=column": range(-4, 5),
            "mean": [-0.5] * 9,
        }
    )
    table = Table("T", ["W2A2"], ["a"], [], 1, "loss", 1)
    write_tables(Tables(table, "", NO_VERDICTS, [], None, {"table": frame}), tmp_path)
    read = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    assert list(read) == ["label", "'=column", "mean"]
    assert list(read["label"]) == [
        "'=1+1", "'+x", "'-x", "'@SUM(A1)", "'\t=1", "'＝1", "-1.5", "a=b", "",
    ]  # fmt: skip
    assert read["'=column"][0] == "-4"
    assert read["mean"][0] == "-0.5"
    assert pd.read_parquet(tmp_path / "table.parquet")["label"][0] == "=1+1"


def test_loss_studies_show_loss_and_less_is_better(toy: Workspace) -> None:
    found = collect(toy, "small")
    cells = summarize_cells(found)
    assert "loss_mean" in cells
    assert "top1_mean" not in cells
    assert list(cells[cells["best"]]["method"]) == ["statsq"]
    assert "loss" in to_markdown(Table.of(found, cells))


def test_sizes_of_exported_models_stand_beside_that_of_full_precision(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(
        tmp_path, methods=["lsq", "statsq"], models=["micro", "macro"], figures=["accuracy"]
    )
    synthetic.fill(workspace)
    for cell in workspace.grid("small").cells:
        if cell.place[:2] == ("micro", "W2A2"):  # of one seed, as all are equally large
            folder = RunFolder(workspace.results / "runs" / cell.runs[1].id)
            sizes = {"packed_bytes": 85_499, "full_precision_bytes": 459_000}
            folder.write_json("packed.json", sizes)
    page = build(workspace, "small", workspace.reports / "small")
    rows = [line.split(" | ") for line in page.with_name("table.md").read_text().splitlines()]
    assert rows[4][5] == "W2A2 size (MB)"
    sizes = {(row[0], row[1]): (row[5], row[9].removesuffix(" |")) for row in rows if len(row) > 9}
    assert sizes["| micro", "Full precision"] == ("0.459", "0.459")
    assert sizes["| micro", "StatsQ"] == ("0.0855", "–")
    assert sizes["| macro", "LSQ"] == ("–", "–")
    assert "Size: of the file that ofq export writes" in page.read_text()
    assert ",85499,459000," in page.with_name("runs.csv").read_text()


def test_tables_of_runs_that_were_not_exported_have_no_sizes(report: Path) -> None:
    assert "size" not in (report / "table.md").read_text().lower()
    assert "bytes" not in (report / "runs.csv").read_text()


def test_one_seed_is_reported_without_any_interval(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, seeds=[7], methods=["lsq", "statsq"])
    synthetic.fill(workspace)
    found = collect(workspace, "small")
    table = Table.of(found, summarize_cells(found))
    assert table.notes[0].startswith("One seed")
    assert "±" not in to_markdown(table)
    assert set(compare(found)["verdict"]) == {"no interval"}


def test_one_method_has_nothing_to_compare(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=["lsq"])
    synthetic.fill(workspace)
    found = collect(workspace, "small")
    assert compare(found).empty
    assert not summarize_cells(found)["best"].any()


def test_missing_seed_does_not_count_a_shared_qat_run_twice(tmp_path: Path) -> None:
    # CGA's column mid-run is that of its QAT run, but for the seed that isn't there
    found = []
    for name in ("whole", "gap"):
        workspace = synthetic.make_workspace(tmp_path / name, bits=["W2A2"], figures=["accuracy"])
        synthetic.fill(workspace)
        if name == "gap":
            run = workspace.grid("small").cells[-1].runs[0]
            (workspace.results / "runs" / run.id / "result.json").unlink()
        blocks = Blocks.of(collect(Workspace(workspace.root), "small"), OSCILLATION_MID)
        found.append(blocks.difference(("micro", "W2A2"), "statsq", "lsq"))
    assert found[0] == found[1]


def test_method_that_is_tried_at_some_bits_has_dashes_at_the_others(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(
        tmp_path, methods=["lsq", "statsq"], only={"statsq": ["W4A4"]}, figures=["accuracy"]
    )
    synthetic.fill(workspace)
    records = collect(workspace, "small")
    table = Table.of(records, summarize_cells(records))
    [row] = [row for row in table.rows if row.label == "StatsQ"]
    assert [entry.text for entry in row.entries[:3]] == ["–"] * 3
    assert "±" in row.entries[3].text
    assert set(compare(records)["bits"]) == {"W4A4"}
    page = build(workspace, "small", workspace.reports / "small").read_text()
    assert 'href="#micro/W2A2/statsq"' not in page
    assert 'href="#micro/W4A4/statsq"' in page
