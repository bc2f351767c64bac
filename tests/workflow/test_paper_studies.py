"""The paper's studies in small, each run and report of them, with a few steps of training."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ofq.cli import app
from ofq.config import Workspace

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.stem for path in (ROOT / "config/studies").glob("*_digits.yaml"))
ONE = ("released_digits",)  # studies of one seed

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def ofq(*words):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (words, done.output, done.exception)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, one_thread):
    """The committed config with one seed and stages of one epoch, and all runs of the studies."""
    root = tmp_path_factory.mktemp("paper")
    shutil.copytree(ROOT / "config", root / "config")
    shorter = {
        "recipes/digits_brief": (r"epochs: \d+", "epochs: 1"),
        "recipes/summary_digits": (r"epochs: \d+", "epochs: 1"),
        "methods/noise_injection": ("samples: 20", "samples: 3"),
        **{
            f"studies/{study}": (r"seeds: .*", "seeds: [0]")
            for study in STUDIES
            if study not in ONE
        },
    }
    for name, (long, short) in shorter.items():
        path = root / "config" / f"{name}.yaml"
        text, count = re.subn(long, short, re.sub(r"warmup_epochs: \d+, ", "", path.read_text()))
        assert count
        path.write_text(text)
    workspace = Workspace(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        runs = dict.fromkeys(run for study in STUDIES for run in workspace.grid(study).runs())
        for run in runs:
            ofq("train", "--no-track", run)
        yield workspace
    assert torch.get_num_threads() == 1


@pytest.mark.timeout(600)  # the first one trains all runs
@pytest.mark.parametrize("study", STUDIES)
def test_study_is_built_with_all_of_its_cells_and_figures(checkout, study):
    ofq("report", study)
    report = checkout.reports / study
    cells = pd.read_csv(report / "table.csv")
    assert (cells["n"] == 1).all()
    assert cells["missing"].isna().all()
    drawn = {path.stem for path in (report / "figures").glob("*.svg")}
    assert drawn == set(checkout.study(study).figures)


def test_each_study_on_imagenet_has_one_in_small():
    large = {
        path.stem
        for path in (ROOT / "config/studies").glob("*.yaml")
        if Workspace(ROOT).recipe(Workspace(ROOT).study(path.stem).recipe).dataset == "imagenet"
    }
    assert {"main", "ablation", "released", "summary", "nagel"} <= large
    small = {name.removesuffix("_digits") for name in STUDIES}
    assert small | {"nagel"} == large  # its small one, nagel_fashion, needs larger images
