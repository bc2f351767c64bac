"""The page on adding one's own, followed word for word from outside the package to a report."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending.md").read_text()
BLOCKS = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the workflow and what the page says, and nothing else."""
    root = tmp_path_factory.mktemp("extending")
    for name in ("Snakefile", "workflow"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    for name, text in BLOCKS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "config/config.yaml").write_text("studies: [mine]\n")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "mine"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def records(checkout, part):
    found = [
        path.parent for path in checkout.glob("results/runs/*/*/*/run.json") if part in str(path)
    ]
    assert len(found) == 2, part
    return found


def test_each_example_is_shorter_than_thirty_lines():
    assert len(BLOCKS) == 12
    assert all(text.count("\n") < 30 for _, text in BLOCKS)


@pytest.mark.integration
@pytest.mark.slow
def test_study_of_ones_own_parts_reaches_its_report(checkout):
    report = checkout / "reports/mine"
    table = pd.read_csv(report / "table.csv")
    assert set(table["method"]) == {"fp", "halved+shrink", "statsq+shrink_after"}
    assert table["top1_mean"].between(0, 100).all()
    assert (report / "figures/losses.png").stat().st_size > 5000
    assert "Training loss of each run." in (report / "index.html").read_text()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "home"),
    [
        ("quantizers", "halved", "mine.quantizers"),
        ("quantizers", "clipped", "mine.activations"),
        ("techniques", "shrink", "mine.techniques"),
        ("datasets", "stripes", "mine"),
        ("figures", "losses", "mine.figures"),
        ("models", "narrow_vit", "mine.models"),
    ],
)
def test_own_parts_are_listed_with_their_modules(checkout, kind, name, home):
    command = [sys.executable, "-m", "ofq", "list", kind]
    listed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    rows = [line.split()[:2] for line in listed.stdout.splitlines()]
    assert [name, home] in rows


def test_name_that_an_installed_package_declares_needs_no_module(tmp_path):
    about = tmp_path / "halves-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n")
    points = "[ofq.plugins]\nhalved = halves.quantizers\nshrink = halves.techniques\n"
    (about / "entry_points.txt").write_text(points)
    code = """
from ofq.config.method import Method
own = Method(label="x", weight_quantizer="halved")
other = Method(label="x", weight_quantizer="lsq", techniques=[{"form": "shrink"}])
plain = Method(label="x", weight_quantizer="lsq")
print(own.module, other.module, plain.module)
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["halves.quantizers", "halves.techniques", "None"]


@pytest.mark.integration
@pytest.mark.slow
def test_own_parts_are_in_the_runs_names_and_their_modules_on_record(checkout):
    for folder in records(checkout, "w2a2-halved-shrink"):
        config = json.loads((folder / "run.json").read_text())["config"]
        assert config["stabilizer"] == {"form": "shrink", "factor": 0.99}
        assert config["model_args"] == {"img_size": 8, "in_chans": 1}
        assert config["dataset"] == "stripes"
        attempt = json.loads((folder / "provenance.json").read_text())["attempts"][-1]
        assert [module["name"] for module in attempt["modules"]] == ["mine"]
        assert len(attempt["modules"][0]["sha256"]) == 64
    for folder in records(checkout, "w2a2-statsq-cga_shrink"):
        metrics = pd.read_parquet(folder / "metrics.parquet")
        assert metrics["shrunk_steps"].iloc[-1] == 10  # an epoch of 320 images by 32
