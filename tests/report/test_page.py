import errno
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from ofq.config import Workspace
from ofq.errors import UserError
from ofq.report import build

from tests.support import synthetic
from tests.support.report_files import contents

FRAMES = {f"{name}.{e}" for name in ("table", "runs", "differences") for e in ("csv", "parquet")}
FILES = {"index.html", "table.md", "table.tex", "measures.tex", *FRAMES}


class Links(HTMLParser):
    """Collects what a page refers to, and checks that its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(report: Path) -> str:
    return (report / "index.html").read_text()


def test_report_has_every_file(report: Path) -> None:
    names = synthetic.STUDY["figures"]
    figures = {f"figures/{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert set(contents(report)) == FILES | figures


def test_building_twice_gives_the_same_bytes(workspace: Workspace, report: Path) -> None:
    before = contents(report)
    build(Workspace(workspace.root), "small", report)
    assert contents(report) == before


def test_each_number_leads_to_its_runs(page: str, workspace: Workspace) -> None:
    links = Links()
    links.feed(page)
    inside = {unquote(link[1:]) for link in links.found if link.startswith("#")}
    cells = workspace.grid("small").cells
    assert inside == {f"{cell.model}/{cell.bits}/{cell.method}" for cell in cells}
    for name in inside:
        assert page.count(f'id="{name}"') == 1
        assert page.count(f'data-cell="{name}"') == 3


def test_page_refers_to_nothing_outside(page: str, report: Path, workspace: Workspace) -> None:
    links = Links()
    links.feed(page)
    assert links.open == []
    elsewhere = ("data:image/svg+xml,", "../", "#")
    own = [link for link in links.found if not link.startswith(elsewhere)]
    assert own
    assert all((report / link).is_file() for link in own)
    runs = [link for link in links.found if link.startswith("../")]
    assert len(runs) == 27
    assert all((report / link / "result.json").is_file() for link in runs)
    assert "://" not in re.sub(r"data:[^\"]*", "", page)


def test_no_file_holds_a_machines_path(report: Path, workspace: Workspace) -> None:
    for name, data in contents(report).items():
        assert str(workspace.root).encode() not in data, name


def test_page_has_the_studys_words_escaped(page: str) -> None:
    assert "Made-up &amp; tested" in page
    assert "StatsQ is better than LSQ by &lt;3.5&gt; points." in page
    assert "What to expect" in page
    assert "snakemake --cores 2 small" in page


def test_page_warns_of_what_misleads(page: str) -> None:
    assert "hides oscillation at the very end" in page
    assert "not comparable across quantizers" in page


def test_every_run_is_named_with_its_commit(page: str, workspace: Workspace) -> None:
    for cell in workspace.grid("small").cells:
        for run in cell.runs:
            assert f"<code>{run.id}</code>" in page
    assert "<code>0123456789</code>" in page


def test_study_without_runs_is_refused_in_a_line_and_nothing_is_written(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, seeds=list(range(30)))
    with pytest.raises(UserError, match="train them: snakemake --cores 2 small") as caught:
        build(workspace, "small", tmp_path / "reports" / "small")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "reports").exists()


def test_failure_while_writing_leaves_nothing_behind(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ofq.report.write.write_page", fail)
    with pytest.raises(UserError, match="No space left on device"):
        build(workspace, "small", tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_folder_with_other_things_is_not_replaced(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match=r"holds 'thesis\.txt', which is no part of a report"):
        build(workspace, "small", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize(
    "name", [".git/config", "figures/holiday.png", "figures/a/b.svg", "table.md/x", "index.html"]
)
def test_folder_with_what_no_report_has_is_not_replaced(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "small"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(UserError, match="which is no part of a report"):
        build(workspace, "small", out)
    assert (out / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_link_to_a_folder_is_not_replaced_by_a_report(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "small").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="isn't a folder"):
        build(workspace, "small", tmp_path / "small")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_damaged_table_is_a_damaged_cell(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=["lsq"], figures=["accuracy"])
    synthetic.fill(workspace)
    runs = workspace.grid("small").cells[-1].runs
    for run in runs:
        (workspace.results / "runs" / run.id / "metrics.parquet").write_bytes(b"torn")
    page = build(workspace, "small", tmp_path / "reports" / "small")
    name = f"{runs[0].id}/metrics.parquet"
    for file in ("index.html", "table.md", "table.tex"):
        text = (page.parent / file).read_text()
        assert ">damaged: metrics.parquet<" in text or " damaged: metrics.parquet " in text
        assert f"Damaged and left out: {name}" in text
    assert "damaged: metrics.parquet" in (page.parent / "table.csv").read_text()
    assert runs[0].id not in (page.parent / "runs.csv").read_text()


def test_mean_over_fewer_seeds_says_which_file_is_damaged(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(tmp_path, methods=["lsq"], figures=["accuracy"])
    synthetic.fill(workspace)
    damaged, *whole = workspace.grid("small").cells[-1].runs
    path = workspace.results / "runs" / damaged.id / "result.json"
    path.write_text(path.read_text().replace('"seconds": 9', '"seconds": 8'))
    page = build(workspace, "small", tmp_path / "reports" / "small")
    mean = sum(map(synthetic.default_top1, whole)) / 2
    row = page.with_name("table.md").read_text()
    assert f"| {mean:.2f} ± " in row
    assert "(n = 2; damaged: result.json) |" in row


def test_table_that_mayn_t_be_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = synthetic.make_workspace(tmp_path, seeds=[0], figures=["accuracy"])
    synthetic.fill(workspace)

    def denied(path: Path, flags: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("ofq.runs.record.os.open", denied)
    with pytest.raises(UserError, match=r"result\.json: Permission denied; mend its permissions"):
        build(workspace, "small", workspace.reports / "small")


def test_missing_table_that_a_figure_shows_is_a_damaged_cell(tmp_path: Path) -> None:
    workspace = synthetic.make_workspace(
        tmp_path, methods=["lsq", "statsq+qkr+cga"], figures=["oscillation_by_role"], seeds=[0]
    )
    synthetic.fill(workspace)
    [run, _] = list(workspace.grid("small").cells[-1].runs[0].chain())[1:]
    (workspace.results / "runs" / run.id / "layers.parquet").unlink()
    page = build(workspace, "small", tmp_path / "reports" / "small")
    assert f"Damaged and left out: {run.id}/layers.parquet" in page.read_text()
    assert "damaged: layers.parquet" in page.with_name("table.md").read_text()


def test_report_needs_neither_torch_nor_mlflow(workspace: Workspace, tmp_path: Path) -> None:
    code = f"""
import sys
import ofq.report
assert not {{"pandas", "matplotlib", "scipy"}} & set(sys.modules), "import isn't cheap"
from ofq.config import Workspace
from pathlib import Path
ofq.report.build(Workspace(Path({str(workspace.root)!r})), "small", Path({str(tmp_path / "r")!r}))
assert not {{"torch", "timm", "mlflow", "sklearn"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bits_without_quantized_weights_have_no_oscillation(tmp_path: Path) -> None:
    methods = ["lsq", "statsq"]
    workspace = synthetic.make_workspace(
        tmp_path, bits=["W32A4", "W2A2"], methods=methods, figures=["accuracy_against_oscillation"]
    )
    synthetic.fill(workspace)
    page = build(workspace, "small", workspace.reports / "small")
    rows = [line.split(" | ") for line in page.with_name("table.md").read_text().splitlines()]
    lsq = next(row for row in rows if row[0] == "| LSQ")
    assert lsq[2:4] == ["–", "–"]
    assert "–" not in lsq[5:]


def test_toy_report_is_about_loss(toy: Workspace) -> None:
    page = build(toy, "small", toy.reports / "small").read_text()
    assert '<th class="word">loss</th><th>W2A32</th>' in page
    assert "top-1 (%)" not in page
    shutil.rmtree(toy.reports)
