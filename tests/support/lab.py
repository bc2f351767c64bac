"""A small study, and means to disturb its training and to compare how it ended."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from ofq.config import Workspace
from ofq.runs.attempt import run_folder
from ofq.runs.folder import TABLES, RunFolder

from tests.support import driver
from tests.support.own_process import Forked, run_ofq

STEPS = {"fp": 28, "qat": 56, "cga": 28}

RECIPE = """
dataset: digits
models: [micro_deit_patch2_8]
stages:
  fp: {epochs: 2, batch_size: 64, lr: 2.0e-3}
  qat:
    epochs: 4
    batch_size: 64
    lr: 1.0e-3
    min_lr: 1.0e-4
    distillation: true
    probes: {weights: 3, sample: 16, histograms: 3}
  cga: {epochs: 2, batch_size: 64, lr: 1.0e-4, min_lr: 1.0e-4, distillation: true}
"""

STUDY = """
title: Disturbed
description: For tests.
recipe: disturbed
models: [micro_deit_patch2_8]
bits: [W2A2]
methods: [statsq+qkr+cga]
seeds: [0]
figures: [accuracy]
"""


class Lab:
    """A checkout with one chain of runs: fp, qat, cga.

    Args:
        root: The checkout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        workspace = Workspace(root)
        self.runs = {r.config.stage: r for r in workspace.grid("disturbed").runs().values()}

    def folder(self, stage: str) -> RunFolder:
        return run_folder(Workspace(self.root), self.runs[stage])

    def train(self, stage: str, *options: str, fault=("none", 0)):
        """Train a stage in a process of its own, with a fault or without; how it ended."""
        return run_ofq(self.root, *self._words(stage, options, fault), entry=driver.main)

    def start(self, stage: str, *options: str, fault=("none", 0)) -> Forked:
        """The same in the background."""
        return Forked(self.root, *self._words(stage, options, fault), entry=driver.main)

    def _words(self, stage: str, options: tuple[str, ...], fault: tuple[str, object]) -> list:
        return [*fault, "train", "--no-track", self.runs[stage].id, *options]

    def forget(self, stage: str) -> None:
        """Remove what a stage made."""
        shutil.rmtree(self.folder(stage).path)


def without_times(rows):
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


TIMES = ("seconds", "device_hours", "attempts", "sha256")


def differences(disturbed: RunFolder, undisturbed: RunFolder) -> list[str]:
    """How two runs differ in weights, rows (each there once) and final numbers, but for times."""
    found = [
        f"rows of {table} differ"
        for table in TABLES
        if without_times(disturbed.rows(table)) != without_times(undisturbed.rows(table))
    ]
    if disturbed.state() != "done":
        return [*found, f"weights are missing: {disturbed.state()}"]
    weights = [f.path / "model.safetensors" for f in (disturbed, undisturbed)]
    if weights[0].read_bytes() != weights[1].read_bytes():
        found.append("weights differ")
    results = [
        {k: v for k, v in f.result().items() if k not in TIMES} for f in (disturbed, undisturbed)
    ]
    if results[0] != results[1]:
        found.append("final numbers differ")
    if disturbed.damaged():
        found.append("hashes are not those of the files")
    left = [p.name for p in disturbed.path.rglob("*") if p.match("lock-*") or p.match(".*.tmp")]
    return found + [f"{name} was left" for name in left]


def mirrored_differences(folder: RunFolder, results: Path) -> list[str]:
    """How a run in MLflow, brought up to date now, differs from its folder."""
    from ofq.tracking.mirror import Mirror

    mirror = Mirror(f"sqlite:///{results / 'mlflow.db'}", results)
    mirror.sync(folder)
    experiment = mirror.client.get_experiment_by_name("digits").experiment_id
    tag = f"tags.`ofq.run` = '{folder.description()['id']}'"
    runs = mirror.client.search_runs([experiment], tag)
    if [run.info.status for run in runs] != ["FINISHED"]:
        return [f"MLflow has {[run.info.status for run in runs]}"]
    there = sorted(
        (point.key, point.step, point.value)
        for key in runs[0].data.metrics
        for point in mirror.client.get_metric_history(runs[0].info.run_id, key)
    )
    expected = sorted(
        (key, row["epoch"], value)
        for row in folder.rows("metrics")
        for key, value in row.items()
        if key not in ("epoch", "step", "time") and value is not None
    )
    return [] if there == expected else ["MLflow's points differ"]


def _numbers(folder: RunFolder) -> dict:
    return {key: value for key, value in folder.result().items() if key not in TIMES}


def assert_same(disturbed: RunFolder, undisturbed: RunFolder) -> None:
    """Make sure that a disturbed run ended as if nothing had happened."""
    found = differences(disturbed, undisturbed)
    assert not found, found


def wait_for(condition, seconds: float = 60) -> None:
    """Wait until something is so, of which a file may not be there yet, or no more."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(FileNotFoundError):
            if condition():
                return
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def build(root: Path, recipe: str = RECIPE) -> Lab:
    """Lay out the study in a folder, and train all three stages, in one go each."""
    for folder in ("recipes", "studies", "methods"):
        (root / "config" / folder).mkdir(parents=True)
    # a checkpoint after every step: the faults are to meet as many as they can
    (root / "config" / "config.yaml").write_text("studies: [disturbed]\ncheckpoint_minutes: 1e-9\n")
    (root / "config" / "recipes" / "disturbed.yaml").write_text(recipe)
    (root / "config" / "studies" / "disturbed.yaml").write_text(STUDY)
    methods = Path(__file__).parents[2] / "config" / "methods" / "ofq.yaml"
    shutil.copy(methods, root / "config" / "methods")
    lab = Lab(root)
    for stage in STEPS:
        done = lab.train(stage)
        assert done.returncode == 0, done.stdout + done.stderr
    return lab
