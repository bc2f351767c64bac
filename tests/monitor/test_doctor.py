"""`ofq doctor`: every kind of damage is found in real run folders, and its advice is good."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ofq.cli import main
from ofq.config import Workspace
from ofq.errors import UserError
from ofq.monitor.doctor import examine
from ofq.runs.folder import RunFolder

from tests.support.own_process import main_out_of_time, run_ofq

pytestmark = pytest.mark.timeout(900)  # the first test waits for four trainings


class ExaminedRun:
    """One of the runs of a checkout, to be damaged."""

    def __init__(self, root, mark):
        self.root = root
        runs = Workspace(root).grid("tiny").runs()
        (self.id,) = [name for name in runs if f"/{mark}-" in name]
        self.path = root / "results" / "runs" / self.id

    def __truediv__(self, name):
        return self.path / name

    def findings(self, name=None):
        return examine(Workspace(self.root), name or self.id).findings

    def found(self, level):
        return [finding for finding in self.findings() if finding.level == level]

    def edit_json(self, name, **changes):
        self.replace(name, json.dumps(json.loads((self / name).read_text()) | changes).encode())

    def replace(self, name, content):
        (self / name).unlink()
        (self / name).write_bytes(content)

    def shell(self, command):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path}
        return subprocess.run(
            command, shell=True, cwd=self.root, env=environment, capture_output=True, text=True
        )

    def lines(self, name):
        return (self / name).read_text().splitlines(keepends=True)


def train(checkout, run_id, *options, entry=main):
    return run_ofq(checkout, "train", "--no-track", *options, run_id, entry=entry)


@pytest.fixture(scope="module")
def trained(make_checkout, tmp_path_factory):
    """A seed's full chain, trained; and a run of another seed that was interrupted."""
    checkout = make_checkout(tmp_path_factory.mktemp("trained"))
    for mark in ("fp-s0", "w2a2-statsq-qkr-s0", "w2a2-statsq-qkr-cga0.005-s0"):
        done = train(checkout, ExaminedRun(checkout, mark).id)
        assert done.returncode == 0, done.stderr
    second = ExaminedRun(checkout, "fp-s1").id
    stopped = train(checkout, second, "--time-limit", "0.01", entry=main_out_of_time)
    assert stopped.returncode == 75, stopped.stderr
    checkpoints = ExaminedRun(checkout, "fp-s1") / "checkpoint"
    for path in list(checkpoints.iterdir()):
        shutil.copyfile(path, checkpoints / f"step-000000007{path.suffix}")
    return checkout


@pytest.fixture
def checkout(trained, tmp_path):
    """A copy of it."""
    root = tmp_path / "checkout"
    subprocess.run(["cp", "-a", trained, root], check=True)
    return root


@pytest.fixture
def done(checkout):
    return ExaminedRun(checkout, "w2a2-statsq-qkr-s0")


@pytest.fixture
def stopped(checkout):
    return ExaminedRun(checkout, "fp-s1")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(examined, name):
    examined.replace(name, (examined / name).read_bytes()[:-100])


def says(finding, text, todo=""):
    return text in finding.text and todo in (finding.todo or "")


def snapshot(root):
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in root.rglob("*")
    }


# Sound folders


@pytest.mark.parametrize("mark", ["fp-s0", "w2a2-statsq-qkr-s0", "w2a2-statsq-qkr-cga0.005-s0"])
def test_trained_run_is_sound_in_every_respect(checkout, mark):
    examined = ExaminedRun(checkout, mark)
    findings = examined.findings()
    assert {finding.level for finding in findings} == {"ok"}
    texts = "\n".join(finding.text for finding in findings)
    tables = ["metrics"] if mark == "fp-s0" else ["metrics", "layers"]
    final = len(tables) + 6 + (mark == "w2a2-statsq-qkr-s0")  # with the tracker's history
    for part in (
        "run.json agrees with study tiny",
        "nobody writes the folder",
        "provenance.json has each attempt (1)",
        "no attempt without its end",
        f"{final} final files are whole, and sealed",
        *(f"{table}.parquet: nothing missing, nothing twice" for table in tables),
    ):
        assert part in texts
    assert texts.count("is as it was") == {"fp-s0": 0, "w2a2-statsq-qkr-s0": 1}.get(mark, 2)


def test_interrupted_run_is_sound_and_goes_on(stopped):
    assert [f.text for f in stopped.found("warning")] == ["the run was interrupted: the time limit"]
    assert stopped.found("warning")[0].todo == f"ofq train {stopped.id}"
    assert sum("checkpoint" in f.text and "whole" in f.text for f in stopped.found("ok")) == 2
    assert stopped.found("problem") == []


def test_attempt_that_was_killed_before_its_first_event_is_no_finding(stopped):
    stopped.edit_json("provenance.json", attempts=[{}, {}])
    assert not any("provenance of" in finding.text for finding in stopped.findings())


def test_files_that_mayn_t_be_read_are_no_damage(done, monkeypatch):
    may = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p.name != "result.json" and may(p, mode))
    (finding,) = done.findings()
    assert (finding.level, "no permission to read result.json" in finding.text) == ("problem", True)
    assert finding.todo.startswith("chmod -R u+rX")


def test_nothing_is_changed(checkout):
    before = snapshot(checkout)
    for mark in ("fp-s0", "fp-s1", "w2a2-statsq-qkr-s0"):
        ExaminedRun(checkout, mark).findings()
    assert snapshot(checkout) == before


def test_command_tells_all_and_exits_by_it(done, stopped):
    sound = done.shell(f"ofq doctor {done.id} {stopped.id}")
    assert sound.returncode == 0
    lines = sound.stdout.splitlines()
    assert [lines[0], stopped.id in lines] == [done.id, True]
    assert "  ok       run.json agrees with study tiny" in lines
    assert f"           → ofq train {stopped.id}" in lines
    (done / "metrics.parquet").unlink()
    unsound = done.shell(f"ofq doctor {stopped.id} {done.id}")
    assert unsound.returncode == 1
    assert "  problem  missing or damaged, but sealed: metrics.parquet" in unsound.stdout


# Complete runs: (what is done to the folder, level, what is found, what is advised)


def other_config(examined):
    config = json.loads((examined / "run.json").read_text())["config"]
    config["training"]["lr"] = 0.5
    examined.edit_json("run.json", config=config, seed=1)


def another_gap(examined, change, **numbers):
    """A run whose tables, or numbers, were already wrong when they were sealed."""
    lines = examined.lines("layers.jsonl")
    (examined / "layers.jsonl").write_text("".join(change(lines)))
    result = json.loads((examined / "result.json").read_text()) | numbers
    weights = (examined / "model.safetensors").read_bytes()
    RunFolder(examined.path).finish(result, lambda path: path.write_bytes(weights))


def without_sealed(examined, *damaged):
    subprocess.run(["rm", "-r", examined / "sealed"], check=True)
    for name in damaged:
        flip_a_bit(examined / name)


def from_before_hashes(examined, *missing):
    without_sealed(examined)
    result = json.loads((examined / "result.json").read_text())
    del result["sha256"], result["manifest"]
    examined.replace("result.json", json.dumps(result).encode())
    (examined / "manifest.json").unlink()
    for name in missing:
        (examined / name).unlink()


def opened_twice(examined):
    with (examined / "events.jsonl").open("a") as file:
        file.write('{"event": "opened", "time": 1.0, "devices": 0}\n')


def leave_out_the_method(study):
    study.write_text(study.read_text().replace("[lsq, statsq+qkr+cga]", "[lsq]"))


PUT_BACK = "cp "
ANEW = ".damaged && ofq train "

BOTH = ("model.safetensors", "sealed/model.safetensors")
DAMAGES = {
    "run.json is torn": (
        lambda p: p.replace("run.json", b'{"id"'),
        "problem", "run.json is missing or can't be read", PUT_BACK),
    "run.json is deleted": (
        lambda p: (p / "run.json").unlink(),
        "problem", "run.json is missing or can't be read", PUT_BACK),
    "run.json isn't text": (
        lambda p: p.replace("run.json", b"\xff\xfe"),
        "problem", "run.json is missing or can't be read", PUT_BACK),
    "run.json has another config": (
        other_config,
        "problem", "run.json differs from study tiny in training", ANEW),
    "run.json is another run's": (
        lambda p: p.edit_json("run.json", id="digits/micro/other"),
        "problem", "the folder is digits/micro/other's", "move it to"),
    "provenance is deleted": (
        lambda p: (p / "provenance.json").unlink(),
        "problem", "provenance.json is missing or can't be read", PUT_BACK),
    "provenance has no attempts": (
        lambda p: p.edit_json("provenance.json", attempts=[]),
        "problem", "provenance.json is missing or can't be read", PUT_BACK),
    "provenance has attempts that no event tells of": (
        lambda p: p.edit_json("provenance.json", attempts=[{}, {}, {}]),
        "problem", "missing or damaged, but sealed: provenance.json", PUT_BACK),
    "inputs aren't on record": (
        lambda p: p.edit_json("provenance.json", inputs=None),
        "problem", "missing or damaged, but sealed: provenance.json", PUT_BACK),
    "events are deleted": (
        lambda p: (p / "events.jsonl").unlink(),
        "warning", "events.jsonl doesn't say that it finished", ""),
    "an event is torn": (
        lambda p: (p / "events.jsonl").open("a").write('{"event": "ope'),
        "warning", "events.jsonl: line 5 torn by a crash", ""),
    "an attempt has no end": (
        opened_twice,
        "warning", "attempts whose end isn't on record: 1", ""),
    "a bit of the weights is flipped": (
        lambda p: flip_a_bit(p / "model.safetensors"),
        "problem", "missing or damaged, but sealed: model.safetensors", PUT_BACK),
    "a bit of the weights is flipped, and of the sealed ones": (
        lambda p: [flip_a_bit(p / name) for name in BOTH],
        "problem", "damaged, in its place and sealed: model.safetensors", ANEW),
    "a bit of the manifest is flipped": (
        lambda p: flip_a_bit(p / "manifest.json"),
        "problem", "missing or damaged, but sealed: manifest.json", PUT_BACK),
    "the manifest is deleted": (
        lambda p: (p / "manifest.json").unlink(),
        "problem", "missing or damaged, but sealed: manifest.json", PUT_BACK),
    "a folder is in the result's place": (
        lambda p: [(p / "result.json").unlink(), (p / "result.json").mkdir()],
        "problem", "missing or damaged, but sealed: result.json", "rm -r "),
    "a folder is in the events' place": (
        lambda p: [(p / "events.jsonl").unlink(), (p / "events.jsonl").mkdir()],
        "problem", "events.jsonl is a folder or something else", "rm -r "),
    "a file is in the sealed folder's place": (
        lambda p: [shutil.rmtree(p / "sealed"), (p / "sealed").touch()],
        "problem", "sealed is a file, not a folder", "rm -r "),
    "the mirror's notes are garbage": (
        lambda p: (p / "mirror.json").write_bytes(b"\xff\0{"),
        "warning", "mirror.json: not valid JSON", "ofq track sync "),
    "the mirror's notes are others": (
        lambda p: (p / "mirror.json").write_text('{"sqlite:///x": 5}'),
        "warning", "mirror.json: isn't what a mirror notes", "ofq track sync "),
    "the weights are cut off": (
        lambda p: shorten(p, "model.safetensors"),
        "problem", "missing or damaged, but sealed: model.safetensors", PUT_BACK),
    "the result is torn": (
        lambda p: p.replace("result.json", b'{"top1"'),
        "problem", "missing or damaged, but sealed: result.json", PUT_BACK),
    "the result is edited": (
        lambda p: p.edit_json("result.json", top1=99.9),
        "problem", "missing or damaged, but sealed: result.json", PUT_BACK),
    "a table is deleted": (
        lambda p: (p / "metrics.parquet").unlink(),
        "problem", "missing or damaged, but sealed: metrics.parquet", PUT_BACK),
    "the result is deleted": (
        lambda p: (p / "result.json").unlink(),
        "problem", "missing or damaged, but sealed: result.json", "ofq train "),
    "sealed weights are deleted": (
        lambda p: (p / "sealed/model.safetensors").unlink(),
        "warning", "sealed/model.safetensors is missing or damaged", "cp "),
    "nothing is sealed": (
        without_sealed,
        "warning", "the final files are whole, but not sealed", "mkdir -p "),
    "damaged weights aren't sealed": (
        lambda p: without_sealed(p, "model.safetensors"),
        "problem", "missing or damaged, and not sealed: model.safetensors", ANEW),
    "a torn result isn't sealed": (
        lambda p: without_sealed(p) or p.replace("result.json", b"{"),
        "problem", "result.json: isn't what was written", ANEW),
    "there are no hashes": (
        from_before_hashes,
        "warning", "from before hashes were kept", ""),
    "there are no hashes, and a file is missing": (
        lambda p: from_before_hashes(p, "metrics.parquet"),
        "problem", "missing: metrics.parquet", ANEW),
    "the final table has a gap": (
        lambda p: another_gap(p, lambda lines: lines[:2] + lines[3:]),
        "problem", "layers.parquet: (epoch 0, layer ", ANEW),
    "the final table has a row twice": (
        lambda p: another_gap(p, lambda lines: [*lines, lines[-1]]),
        "problem", "standing twice", ANEW),
    "the final table ends too early": (
        lambda p: another_gap(p, lambda lines: lines, epochs=3),
        "problem", "metrics.parquet: ends at epoch 2, but result.json tells of 3", ANEW),
    "a row of the grown table is lost": (
        lambda p: (p / "metrics.jsonl").write_text("".join(p.lines("metrics.jsonl")[:-1])),
        "warning", "metrics.jsonl isn't as metrics.parquet", ""),
    "a number of the grown table is changed": (
        lambda p: (p / "metrics.jsonl").write_text(
            (p / "metrics.jsonl").read_text().replace('"epoch": 1', '"epoch": 7')),
        "warning", "metrics.jsonl isn't as metrics.parquet", ""),
    "the parent's weights are others": (
        lambda p: flip_a_bit(ExaminedRun(p.root, "fp-s0") / "model.safetensors"),
        "problem", "model.safetensors isn't what the run was made from", ANEW),
    "the parent isn't complete": (
        lambda p: (ExaminedRun(p.root, "fp-s0") / "result.json").unlink(),
        "warning", "which it builds on, isn't complete", "ofq train digits/"),
    "a half-written file is left": (
        lambda p: (p / ".model.safetensors.17.tmp").touch(),
        "warning", "left by a writer that was killed: .model.safetensors.17.tmp", "rm -r "),
    "progress is left": (
        lambda p: (p / "progress.json").touch(),
        "warning", "left by a writer that was killed: progress.json", "rm -r "),
    "the study's file has changed": (
        lambda p: leave_out_the_method(p.root / "config/studies/tiny.yaml"),
        "warning", "no study under config/ has this run any more", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_a_complete_run_is_found(done, name):
    damage, level, text, todo = DAMAGES[name]
    damage(done)
    findings = done.findings()
    assert any(says(f, text, todo) and f.level == level for f in findings), findings
    assert (level == "problem") == any(f.level == "problem" for f in findings)


MENDED = [
    "run.json is torn",
    "run.json is deleted",
    "inputs aren't on record",
    "a bit of the weights is flipped",
    "a bit of the manifest is flipped",
    "the manifest is deleted",
    "a folder is in the result's place",
    "the weights are cut off",
    "the result is torn",
    "the result is edited",
    "a table is deleted",
    "the result is deleted",
    "sealed weights are deleted",
    "nothing is sealed",
    "a half-written file is left",
    "progress is left",
]


@pytest.mark.parametrize("name", MENDED)
def test_advice_makes_the_run_sound(done, name):
    damage, level, text, _ = DAMAGES[name]
    damage(done)
    todo = next(f.todo for f in done.found(level) if says(f, text))
    told = done.shell(todo)
    assert told.returncode == 0, told.stderr
    assert {finding.level for finding in done.findings()} == {"ok"}


@pytest.mark.slow
def test_damaged_run_is_trained_anew_beside_what_is_left_of_it(checkout):
    examined = ExaminedRun(checkout, "w2a2-statsq-qkr-cga0.005-s0")
    weights = (examined / "model.safetensors").read_bytes()
    for name in BOTH:
        flip_a_bit(examined / name)
    (problem,) = examined.found("problem")
    assert examined.shell(problem.todo.replace("ofq train", "ofq train --no-track")).returncode == 0
    assert {finding.level for finding in examined.findings()} == {"ok"}
    assert (examined / "model.safetensors").read_bytes() == weights
    assert (examined.path.parent / f"{examined.path.name}.damaged" / "model.safetensors").exists()


def test_lock_left_in_a_complete_run_is_removed(done, hold):
    owner = hold(done.path)
    owner.kill()
    owner.wait()
    (warning,) = done.found("warning")
    assert says(warning, f"process {owner.pid} on", "rm -r ")
    assert done.shell(warning.todo).returncode == 0
    assert {finding.level for finding in done.findings()} == {"ok"}


@pytest.mark.parametrize(("content", "level"), [(b"other", "problem"), (None, "warning")])
def test_file_that_the_run_was_made_from_is_checked(done, content, level):
    provenance = json.loads((done / "provenance.json").read_text())
    facts = provenance["inputs"] | {"start.safetensors": "0" * 64}
    done.edit_json("provenance.json", inputs=facts)
    if content is not None:
        (done.root / "start.safetensors").write_bytes(content)
    assert any("start.safetensors" in finding.text for finding in done.found(level))


# Runs that aren't complete


def torn_checkpoints(examined, newest):
    for path in sorted((examined / "checkpoint").glob("*.pt"))[-newest:]:
        path.write_bytes(path.read_bytes()[:-7])


def double_the_last_row(examined):
    (examined / "metrics.jsonl").write_text("".join(2 * examined.lines("metrics.jsonl")))


def lose_a_row(examined):
    row = json.loads(examined.lines("metrics.jsonl")[-1])
    folder = RunFolder(examined.path)
    folder.append("metrics", [row | {"epoch": row["epoch"] + 2}])


def lose(examined, name, kept):
    """Keep some of the lines of a table that two checkpoints count on."""
    (examined / name).write_text("".join(examined.lines(name)[:kept]))


UNFINISHED = {
    "the rows that a checkpoint counts on are emptied": (
        lambda p: lose(p, "metrics.jsonl", 0),
        "problem", "metrics.jsonl: has 0 rows, but not the first 1 as checkpoint", ANEW),
    "the table that a checkpoint counts on is removed": (
        lambda p: (p / "metrics.jsonl").unlink(),
        "problem", "metrics.jsonl: has 0 rows, but not the first 1 as checkpoint", ANEW),
    "a number of a row is changed": (
        lambda p: (p / "metrics.jsonl").write_text(
            (p / "metrics.jsonl").read_text().replace('"lr": 0.', '"lr": 1.')),
        "problem", "has 1 rows, but not the first 1 as checkpoint", ANEW),
    "its progress is garbage": (
        lambda p: (p / "progress.json").write_text('{"step": "x"}'),
        "warning", "progress.json: isn't the progress of a run", "rm -r "),
    "its lock names no process": (
        lambda p: (p / "lock-9.json").write_bytes(b"[[[["),
        "warning", "lock-9.json names no process", "rm -r "),
    "a folder is in a lock's place": (
        lambda p: (p / "lock-9.json").mkdir(),
        "problem", "lock-9.json is a folder or something else", "rm -r "),
    "its run.json is nested": (
        lambda p: p.replace("run.json", b"[" * 100_000),
        "problem", "run.json is missing or can't be read", "put it back from a backup"),
    "an event has a type of no event": (
        lambda p: (p / "events.jsonl").open("a").write('{"event": 5, "time": "now"}\n'),
        "warning", "events.jsonl: line 4 torn", "nothing"),
    "an epoch is as large as no training has": (
        lambda p: RunFolder(p.path).append("metrics", [{"epoch": 10**15, "step": 3}]),
        "problem", "without its place", ANEW),
    "its newest checkpoint is torn": (
        lambda p: torn_checkpoints(p, 1),
        "warning", "is damaged: its SHA-256 is another; it is passed over", ""),
    "no checkpoint is whole": (
        lambda p: torn_checkpoints(p, 2),
        "problem", "no whole checkpoint: the run begins again", "ofq train "),
    "its checkpoints are of another version": (
        lambda p: [
            p.edit_json(path.relative_to(p.path), format=99)
            for path in (p / "checkpoint").glob("*.json")
        ],
        "problem", "is another version's", "go on with the version that made it"),
    "a checkpoint has no manifest": (
        lambda p: sorted((p / "checkpoint").glob("*.json"))[-1].unlink(),
        "warning", "left by a writer that was killed: step-", "rm -r "),
    "a row stands twice": (
        double_the_last_row,
        "problem", "metrics.jsonl: epoch 0 standing twice", ANEW),
    "a row is missing": (
        lose_a_row,
        "problem", "metrics.jsonl: epoch 1 missing", ANEW),
    "a row has no place": (
        lambda p: RunFolder(p.path).append("metrics", [{"loss": 1.0}]),
        "problem", "metrics.jsonl: epoch None without its place", ANEW),
    "a row is torn": (
        lambda p: (p / "metrics.jsonl").open("a").write('{"epoch": 1, "lo'),
        "warning", "metrics.jsonl: a line torn by a crash", "ofq train "),
    "run.json is deleted": (
        lambda p: (p / "run.json").unlink(),
        "problem", "run.json is missing or can't be read", "ofq train "),
    "provenance is torn": (
        lambda p: p.replace("provenance.json", b"{"),
        "problem", "provenance.json is missing or can't be read", "provenance.json && ofq train "),
    "it failed by its numbers": (
        lambda p: RunFolder(p.path).event("failed", cause="nan\nmore", code="x", seconds=1),
        "problem", "the run failed: nan", " --again"),
    "it failed by a mistake": (
        lambda p: RunFolder(p.path).event("failed", cause="no such file", seconds=1),
        "problem", "the run failed: no such file", "once that is mended"),
    "a checkpoint is asked for in vain": (
        lambda p: (p / "save-requested").touch(),
        "warning", "left by a writer that was killed: save-requested", "rm -r "),
    "events are deleted": (
        lambda p: (p / "events.jsonl").unlink(),
        "warning", "no attempt is on record", "ofq train "),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFINISHED)
def test_damage_to_an_unfinished_run_is_found(stopped, name):
    damage, level, text, todo = UNFINISHED[name]
    damage(stopped)
    findings = stopped.findings()
    assert any(says(f, text, todo) and f.level == level for f in findings), findings
    assert (level == "problem") == any(f.level == "problem" for f in findings)


def test_run_without_its_parent_says_which_to_train_first(checkout):
    child = ExaminedRun(checkout, "w2a2-lsq-s1")
    parent = ExaminedRun(checkout, "fp-s1")
    run = Workspace(checkout).grid("tiny").runs()[child.id]
    description = {
        "id": run.id,
        "config": run.config.payload(),
        "parent": parent.id,
        "teacher": None,
    }
    RunFolder(child.path).open(description)
    (problem,) = child.found("problem")
    assert says(
        problem, f"{parent.id}, which it builds on, isn't complete", f"ofq train {parent.id}"
    )


def test_dead_owner_is_told_from_a_living_one(stopped, hold):
    owner = hold(stopped.path)
    assert any(says(f, f"process {owner.pid} on ") for f in stopped.found("ok"))
    assert not stopped.found("warning")
    owner.kill()
    owner.wait()
    warnings = [f for f in stopped.found("warning") if "it has died" in f.text]
    assert [f.todo for f in warnings] == [f"ofq train {stopped.id}"]


def test_end_of_an_attempt_that_was_killed_is_missed_only_without_its_lock(stopped, hold):
    owner = hold(stopped.path)
    opened_twice(stopped)
    owner.kill()
    owner.wait()
    assert not any("end isn't on record" in f.text for f in stopped.findings())
    for path in stopped.path.glob("lock-*"):
        path.unlink()
    assert any("end isn't on record: 1" in f.text for f in stopped.found("warning"))


def test_heartbeat_of_another_clock_is_said(stopped, hold):
    hold(stopped.path)
    (lock,) = stopped.path.glob("lock-*.json")
    ahead = time.time() + 3600
    os.utime(lock, (ahead, ahead))
    assert any("clocks differ" in f.text for f in stopped.found("warning"))


def test_what_a_living_trainer_is_writing_is_no_damage(stopped, hold):
    hold(stopped.path)
    (stopped / ".progress.json.17.tmp").touch()
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "lo')
    (stopped / "sealed").mkdir()
    (stopped / "sealed" / "result.json").write_text('{"sha256": {"model.safetensors": "0"}}')
    assert {finding.level for finding in stopped.findings()} == {"ok"}


# Which folder


def test_folder_may_be_given_by_its_path(done, monkeypatch):
    expected = done.findings()
    assert done.findings(str(done.path)) == expected
    monkeypatch.chdir(done.path)
    assert examine(Workspace(done.root), ".").findings == expected


def test_folder_that_lies_elsewhere_is_known_by_its_record(done):
    moved = done.root / "elsewhere"
    done.path.rename(moved)
    (warning,) = [f for f in done.findings(str(moved)) if f.level != "ok"]
    assert says(warning, f"the workflow looks for it in {done.path}")
    assert examine(Workspace(done.root), str(moved)).name == done.id


def test_run_that_has_not_begun_is_no_problem(checkout):
    examined = ExaminedRun(checkout, "w2a2-lsq-s0")
    (finding,) = examined.findings()
    assert (finding.level, finding.todo) == ("warning", f"ofq train {examined.id}")


@pytest.mark.parametrize("name", ["digits/micro/none", "config", "results/runs"])
def test_what_is_no_run_is_refused(checkout, name, monkeypatch):
    monkeypatch.chdir(checkout)
    with pytest.raises(UserError, match=f"{name}.* run folder"):
        examine(Workspace(), name)
