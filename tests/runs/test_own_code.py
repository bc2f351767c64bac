"""Runs made by another version of a user's module are told and set aside, and no others."""

import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ofq.cli import app
from ofq.config import Workspace
from ofq.errors import TryAgain
from ofq.monitor.doctor import examine
from ofq.monitor.status.runs import StudyStatus
from ofq.monitor.status.table import Page
from ofq.runs.attempt import run_folder
from ofq.runs.own_code import OwnCode, changed_runs, made_with
from ofq.runs.provenance import hashes_of_module
from ofq.runs.set_aside import JOB_LOG, set_aside, with_descendants

from tests.support.own_process import run_ofq

MODULE = """
import ofq


@ofq.register_weight_quantizer("mine")
class Mine(ofq.StatsQ):
    pass
"""
CONFIG = {
    "config.yaml": "studies: [mine]\ncheckpoint_minutes: 1e-9\n",
    "methods/mine.yaml": """
mine: {label: Mine, weight_quantizer: mine, module: own}
mine+freeze:
  label: Mine, frozen
  weight_quantizer: mine
  module: own
  cga: {form: freeze_all}
lsq: {label: LSQ, weight_quantizer: lsq}
""",
    "recipes/toy.yaml": """
dataset: toy_regression
models: [toy_regression_4]
stages:
  qat: {epochs: 2, batch_size: 16, optimizer: sgd, lr: 0.05, min_lr: 0.05}
  cga: {epochs: 1, batch_size: 16, optimizer: sgd, lr: 0.05, min_lr: 0.05}
""",
    "studies/mine.yaml": """
title: Mine
recipe: toy
models: [toy_regression_4]
bits: [W3A32]
methods: [lsq, mine]
seeds: [0]
figures: [loss]
""",
    "studies/other.yaml": """
extends: mine
methods: [mine+freeze]
""",
}
WORDS = "made by another version of own, which has changed since; ofq retrain mine --changed"


class Mine:
    """A checkout whose studies use a module of its own."""

    def __init__(self, root):
        self.root = root
        for name, text in CONFIG.items():
            path = root / "config" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.write_module(MODULE)

    @property
    def workspace(self):
        return Workspace(self.root)

    def write_module(self, text):
        (self.root / "own.py").write_text(text)

    def edit_module(self):
        self.write_module(MODULE + "# another version\n")

    def id(self, part, study="other"):
        (found,) = [n for n in self.workspace.grid(study).runs() if re.search(f"{part}-s0", n)]
        return found

    def folder(self, name, study="other"):
        return run_folder(self.workspace, self.workspace.grid(study).runs()[name])

    def train(self, name):
        return run_ofq(self.root, "train", "--no-track", name)

    def trained(self):
        for name in (self.id("lsq", "mine"), self.id("mine"), self.id("freeze_all")):
            done = self.train(name)
            assert done.returncode == 0, done.stderr
        return self

    def changed(self, study="mine"):
        return changed_runs(self.workspace, self.workspace.grid(study).runs())

    def ofq(self, *words):
        return run_ofq(self.root, *words)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Mine(tmp_path)


@pytest.fixture
def trained(mine):
    return mine.trained()


def attempt(*hashes):
    return {"modules": [{"name": "own", "sha256": digest} for digest in hashes]}


def events(*kinds):
    return [{"event": kind} for kind in kinds]


@pytest.mark.parametrize(
    ("happened", "counting"),
    [
        (events(), "abc"),
        (events("opened", "failed", "opened", "started", "finished"), "bc"),
        (events("opened", "started", "lost", "opened", "started", "opened", "resumed"), "bc"),
        (events("opened", "started", "lost", "opened", "resumed", "opened", "resumed"), "abc"),
        (events("opened", "failed", "opened", "failed", "opened", "started"), "c"),
    ],
)
def test_attempts_count_from_the_last_that_began_anew(happened, counting):
    known = made_with([attempt(digest) for digest in "abc"], happened)
    assert "".join(hashes["sha256"] for hashes in known["own"]) == counting


@pytest.mark.parametrize(
    "attempts",
    [None, 3, [3], [{}], [{"modules": 3}], [{"modules": [{"name": 3}]}], [{"module": {}}]],
)
def test_records_without_hashes_tell_nothing(attempts):
    assert made_with(attempts, events("opened")) == {}


def test_record_of_an_early_version_has_one_module():
    known = made_with([{"module": {"name": "own", "sha256": "a"}}], [])
    assert known == {"own": [{"sha256": "a", "package_sha256": None}]}


def test_package_is_known_by_all_of_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("from pack import part\n")
    (tmp_path / "pack/part.py").write_text("x = 1\n")
    then = hashes_of_module("pack")
    known = {"pack": [then], "early": [{"sha256": then["sha256"]}]}
    assert OwnCode().changed(known) == []
    (tmp_path / "pack/part.py").write_text("x = 2\n")
    assert hashes_of_module("pack")["sha256"] == then["sha256"]
    assert OwnCode().changed(known) == ["pack"]


def test_module_that_is_gone_is_no_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert OwnCode().changed({"nosuch_module": [{"sha256": "a"}]}) == []


def test_changed_module_is_told_where_one_looks(trained):
    looks = [("status", "mine"), ("plan", "mine", "--cores", "2"), ("report", "mine")]
    for words in looks:
        assert "another version" not in trained.ofq(*words).stdout
    qat = trained.id("mine")
    page = trained.root / "reports/mine/index.html"
    assert "another version" not in page.read_text()
    trained.edit_module()
    assert trained.changed() == {qat: ["own"]}
    for words in looks:
        assert f"1 run was {WORDS}" in trained.ofq(*words).stdout, words
    assert f"1 run was {WORDS}" in page.read_text()
    assert f"changed {qat}: made by another version of own" in trained.ofq("status", "mine").stdout
    findings = examine(trained.workspace, qat).findings
    assert any("own has changed since the run began" in finding.text for finding in findings)


def test_changed_runs_and_all_that_build_on_them_are_made_again(trained):
    qat, child = trained.id("mine"), trained.id("freeze_all")
    log = trained.root / "logs/train" / f"{qat}.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: an early failure\n")
    weights = (trained.folder(qat).path / "model.safetensors").read_bytes()
    trained.edit_module()
    listed = trained.ofq("retrain", "mine", "--changed", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert f"{qat}  (own has changed)\n{child}  (builds on them)\n2 runs would" in listed.stdout
    assert trained.folder(qat).complete()
    done = trained.ofq("retrain", "mine", "--changed")
    assert "moved 2 runs to results/set_aside/" in done.stdout
    [place] = (trained.root / "results/set_aside").iterdir()
    assert (place / qat / "model.safetensors").read_bytes() == weights
    assert (place / qat / JOB_LOG).read_text() == "error: an early failure\n"
    assert (place / child / "result.json").exists()
    assert not list(place.rglob("lock-*"))
    assert not trained.folder(qat).path.exists()
    assert not trained.folder(child).path.exists()
    assert trained.folder(trained.id("lsq", "mine"), "mine").complete()
    assert not log.exists()
    assert trained.train(qat).returncode == 0
    assert trained.changed() == {}
    again = trained.ofq("retrain", "mine", "--changed")
    assert "no run of mine was made by another version" in again.stdout


def test_nothing_is_moved_while_a_run_is_being_written(trained, hold):
    qat, child = trained.id("mine"), trained.id("freeze_all")
    trained.edit_module()
    hold(trained.folder(child).path)
    runs = with_descendants(trained.workspace, trained.changed())
    assert runs == [qat, child]
    with pytest.raises(TryAgain, match=rf"{re.escape(child)} is being written by .*\nnothing was"):
        set_aside(trained.workspace, runs)
    assert trained.folder(qat).complete()
    assert trained.folder(child).complete()
    assert not (trained.root / "results/set_aside").exists()


def test_runs_to_retrain_must_be_named(mine):
    done = CliRunner().invoke(app, ["retrain", "mine"])
    assert done.exit_code == 1
    assert "--changed" in str(done.exception)


FAILS = MODULE.replace("    pass", "    def {}:\n        raise RuntimeError('wrong')")


@pytest.mark.parametrize("method", ["__init__(self, bits)", "forward(self, weight)"])
def test_failed_first_attempt_gives_no_false_alarm(mine, method):
    """Whether it failed before the first step, or in it, when its start was saved already."""
    qat = mine.id("mine")
    mine.write_module(FAILS.format(method))
    assert mine.train(qat).returncode != 0
    mine.write_module(MODULE)
    done = mine.train(qat)
    assert done.returncode == 0, done.stderr
    attempts = json.loads((mine.folder(qat).path / "provenance.json").read_text())["attempts"]
    assert mine.changed() == {}
    findings = examine(mine.workspace, qat).findings
    assert any(finding.text == "own is as it was" for finding in findings)
    assert len({attempt["modules"][0]["sha256"] for attempt in attempts}) == len(attempts)


def test_run_that_went_on_with_a_changed_module_is_told(mine):
    """Its first steps were made by the earlier version."""
    qat = mine.id("mine")
    counts = "    steps = 0\n    def forward(self, weight):\n        Mine.steps += 1\n"
    late = counts + "        assert Mine.steps < 12\n        return super().forward(weight)"
    mine.write_module(MODULE.replace("    pass", late))
    assert mine.train(qat).returncode != 0
    mine.write_module(MODULE)
    assert mine.train(qat).returncode == 0
    assert "resumed" in [event["event"] for event in mine.folder(qat).events()]
    assert mine.changed() == {qat: ["own"]}


@pytest.mark.parametrize("width", [80, 140])
def test_table_marks_cells_and_tells_what_to_do(trained, width):
    trained.edit_module()
    console = Console(file=io.StringIO(), width=width, height=40)
    page = Page([StudyStatus(trained.workspace, "mine")], console)
    console.print(page.draw(fit=False))
    lines = console.file.getvalue().splitlines()
    [row] = [line for line in lines if "Mine" in line]
    assert "done, 1 by other code" in row
    [other] = [line for line in lines if "LSQ" in line]
    assert "other code" not in other
    assert WORDS in " ".join(" ".join(lines).split())


def test_live_table_notices_a_module_that_changes_meanwhile(trained):
    watch = StudyStatus(trained.workspace, "mine")
    qat = trained.id("mine")
    assert watch.read()[qat].changed == ()
    trained.edit_module()
    assert watch.read()[qat].changed == ("own",)
