"""Study ``fashion`` from IDX files to verdicts, by the real workflow, on a few hundred images."""

import html
import re
import shutil

import pandas as pd
import pytest
import yaml

from ofq.config import Workspace

from tests.support.idx import write_digits
from tests.support.own_process import working_in
from tests.support.run_folders import until
from tests.support.workflow import ROOT, lay_workflow, snakemake

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

TRAIN, TEST = 256, 200
TWIN = """
extends: fashion
title: Twin of fashion
recipe: twin
bits: [W2A2]
methods: [lsq, statsq, statsq+qkr, statsq+qkr+no_freeze, statsq+qkr+cga, statsq+qkr+noise]
only: {}
seeds: [0, 1]
"""
VERDICTS = {"holds", "contradicted", "no difference", "undecided"}


def shorten(path, copy, *changes):
    """Write a config file anew under another name, with texts replaced that have to be there."""
    text = path.read_text()
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        assert count, (path, pattern)
    copy.write_text(text)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A checkout in which the twin was built by one command, from the folder of fetched files."""
    checkout = tmp_path_factory.mktemp("fashion")
    config = checkout / "config"
    shutil.copytree(ROOT / "config", config)
    lay_workflow(checkout)
    shorten(config / "config.yaml", config / "config.yaml", (r"studies: .*", "studies: [twin]"))
    sets, recipes = config / "datasets", config / "recipes"
    shorten(
        sets / "fashion_mnist.yaml", sets / "fashion_mnist.yaml", (r"place: .*", "place: nowhere")
    )
    shorten(
        sets / "fashion_10k.yaml", sets / "twin.yaml",
        (r"train_images: \d+", f"train_images: {TRAIN}\ntest_images: {TEST}"),
    )  # fmt: skip
    shorten(
        recipes / "fashion_mnist.yaml", recipes / "twin.yaml",
        ("dataset: .*", "dataset: twin"), (r" epochs: \d+", " epochs: 1"),
        (r" +warmup_epochs: \d+\n", ""),
    )  # fmt: skip
    (config / "studies/twin.yaml").write_text(TWIN)
    write_digits(checkout / "data/fashion_mnist", TRAIN + 10, TEST + 10)
    done = snakemake(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: not working_in(checkout, "follow"), 600)
    return checkout


def test_every_claim_that_the_study_tests_has_a_verdict_on_the_page(built):
    claims = yaml.safe_load((ROOT / "config/claims/ofq.yaml").read_text())["claims"]
    found = pd.read_csv(built / "results/reports/twin/claims.csv").set_index("claim")
    assert list(found.index) == [
        name for name in claims if name not in ("gains_shrink", "boundary_range")
    ]
    assert set(found["verdict"]) <= VERDICTS
    page = html.unescape((built / "results/reports/twin/index.html").read_text())
    for name in found.index:
        assert claims[name]["claim"] in page


def test_every_cell_has_both_seeds_on_the_images_that_the_data_set_gives(built):
    table = pd.read_csv(built / "results/reports/twin/table.csv")
    assert (table["n"] == 2).all()
    assert table["missing"].isna().all()
    runs = Workspace(built).grid("twin").runs()
    assert {run.split("/")[0] for run in runs} == {"twin"}
    for run in runs:
        provenance = yaml.safe_load((built / "results/runs" / run / "provenance.json").read_text())
        assert provenance["data"]["images"] == {"train": TRAIN, "val": TEST}
