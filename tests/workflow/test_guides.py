"""The guides, followed: their files and commands make what they promise."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ofq.config import Workspace
from ofq.monitor.devices import named
from ofq.monitor.plan.plan import Machine, Planner

from tests.support import notebooks

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs/guides"
NOTEBOOK = GUIDES / "notebook.ipynb"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def files_of(page):
    """The files that a page says to write, by path."""
    text = (GUIDES / page).read_text()
    return dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, re.DOTALL))


def checkout_with(root, page):
    for name in ("Snakefile", "workflow", "config"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    for name, text in files_of(page).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def anchors(page):
    """The places within a page that links may name, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_readme_leads_to_each_guide():
    last = (ROOT / "README.md").read_text().rpartition("\n## ")[2]
    for guide in GUIDES.iterdir():
        assert f"(docs/guides/{guide.name})" in last


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(900)
def test_first_hour_reaches_both_reports_and_a_bundle(tmp_path):
    """All parts after the demo; one seed stands for three."""
    root = checkout_with(tmp_path, "first_hour.md")
    study = root / "config/studies/first.yaml"
    study.write_text(study.read_text().replace("seeds: [0, 1, 2]", "seeds: [0]"))
    for command in (
        "python first/make_images.py",
        "python -m snakemake --cores 2 first stripes",
        "python -m ofq explain first W2A2/largest",
        "python -m ofq bundle first",
        "python -m ofq unbundle results/reports/first.tar.xz --out first_unpacked",
    ):
        program, *words = command.split()
        assert program == "python"
        done = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Largest weight" in (root / "results/reports/first/table.md").read_text()
    assert (root / "results/reports/stripes/figures/progress.png").stat().st_size > 5000
    page = (root / "results/reports/stripes/index.html").read_text()
    assert "Accuracy of each run after each epoch." in page
    assert (root / "first_unpacked/reports/first/index.html").exists()


def test_costs_that_the_guide_to_clusters_names_are_the_plan_s(tmp_path):
    root = checkout_with(tmp_path, "cluster.md")
    text = (GUIDES / "cluster.md").read_text()
    for study, stated in (("ablation", (2500, 5700)), ("cheap", (3, 6))):
        low, high = stated
        assert f"{low:,} to {high:,} GPU-hours" in text
        found = Planner(Workspace(root), study, named("a100")).plan(Machine(4, 40)).left["gpu"]
        assert (found.low, found.high) == pytest.approx((low, high), rel=0.1)


def test_numbers_of_runs_that_the_guides_name_are_the_grids(tmp_path):
    workspace = Workspace(checkout_with(tmp_path, "first_hour.md"))
    sizes = {"ablation": 16, "ablation_digits": 32}
    assert {name: len(workspace.grid(name).runs()) for name in sizes} == sizes
    text = (GUIDES / "cluster.md").read_text()
    assert "16 runs: what would be submitted" in text
    assert "32 runs of a minute" in text
    assert len(workspace.grid("first").runs()) == 9
    assert "# 9 runs;" in (GUIDES / "first_hour.md").read_text()


def test_guides_name_only_commands_that_exist():
    commands = set()
    for page in GUIDES.glob("*.md"):
        commands |= set(re.findall(r"\bofq ([a-z]+(?:-[a-z]+)?) (?:[A-Za-z])", page.read_text()))
    listed = subprocess.run(
        [sys.executable, "-m", "ofq", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert commands
    assert {name for name in commands if not re.search(rf"\b{name}\b", listed)} == set()


@pytest.mark.slow
def test_notebook_prints_what_it_shows():
    """Words are the same; numbers within what another processor's rounding makes of them."""
    notebook = json.loads(NOTEBOOK.read_text())
    cells = notebooks.code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell, outputs in zip(cells, notebooks.run(notebook), strict=True):
        kinds = [output["output_type"] for output in outputs]
        assert kinds == [output["output_type"] for output in cell["outputs"]]
        shown, found = (notebooks.text(each).splitlines() for each in (cell["outputs"], outputs))
        assert len(found) == len(shown)
        for line, expected in zip(found, shown, strict=True):
            assert words(line) == words(expected)
            percent = 3 if "%" in expected else 1e-3
            assert numbers(line) == pytest.approx(numbers(expected), rel=0.25, abs=percent)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def words(line):
    return NUMBER.sub("", line).split()


def numbers(line):
    return [float(number) for number in NUMBER.findall(line)]
