"""The mirror in a real SQLite store."""

import os
import subprocess
import sys
import threading
import time

import pytest

from ofq.tracking import RunFolder
from ofq.tracking.mirror import Mirror, follow, prepare_store

pytestmark = pytest.mark.slow

CONFIG = {
    "dataset": "digits", "model": "micro", "stage": "qat", "seed": 3, "parent": "12345678",
    "quantization": {"bits": "W2A2", "weight_quantizer": "statsq", "qkr": True}, "annealing": None,
    "training": {"lr": 0.001, "epochs": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def mirror(uri, tmp_path):
    return Mirror(uri, tmp_path / "artifacts")


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "one")
    name = f"digits/micro/w2a2-{tmp_path.name}"
    folder.open({"id": name, "method": "statsq+qkr", "config": CONFIG, "parent": "digits/micro/fp"})
    text = '{"studies": ["digits", "ablation"], "methods": ["statsq+qkr"], "commit": "abc"}'
    (folder.path / "provenance.json").write_text(text)
    folder.event("started")
    return folder


def row(epoch):
    metrics = {"loss": 0.5, "top1": 80.0 + epoch, "train_loss": None if epoch == 0 else 0.25}
    return {"epoch": epoch, "step": 10 * epoch, "time": 1.8e9 + epoch, "lr": 0.1, **metrics}


def mirrored(mirror, folder):
    found = mirror.client.search_runs(
        [mirror.client.get_experiment_by_name("digits").experiment_id],
        filter_string=f"tags.`ofq.run` = '{folder.description()['id']}'",
    )
    assert len(found) == 1
    return found[0]


def points(mirror, run, key):
    history = mirror.client.get_metric_history(run.info.run_id, key)
    return [(m.step, m.value, m.timestamp) for m in history]


def test_run_is_mirrored_live_and_complete(mirror, folder):
    folder.append("metrics", [row(0)])
    mirror.sync(folder)
    run = mirrored(mirror, folder)
    assert run.info.status == "RUNNING"
    assert run.data.params["training.lr"] == "0.001"
    tags = run.data.tags
    expected = {"study": "digits,ablation", "method": "statsq+qkr", "bits": "W2A2", "seed": "3"}
    expected |= {"stage": "qat", "model": "micro", "parent": "digits/micro/fp", "commit": "abc"}
    assert {key: tags[key] for key in expected} == expected
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    folder.append("metrics", [row(1), row(2)])
    folder.event("finished")
    folder.finish({"top1": 82.0})
    mirror.sync(folder)
    run = mirrored(mirror, folder)
    assert run.info.status == "FINISHED"
    stamps = [1_800_000_000_000 + 1000 * e for e in range(3)]
    assert points(mirror, run, "top1") == [(e, 80.0 + e, stamps[e]) for e in range(3)]
    assert [step for step, *_ in points(mirror, run, "train_loss")] == [1, 2]
    names = {item.path for item in mirror.client.list_artifacts(run.info.run_id)}
    assert names == {"run.json", "provenance.json", "metrics.parquet", "result.json"}


def test_mirroring_again_doubles_nothing(uri, folder, tmp_path):
    folder.append("metrics", [row(0), row(1)])
    folder.event("finished")
    folder.finish({})
    for _ in range(2):
        mirror = Mirror(uri, tmp_path / "artifacts")
        mirror.sync(folder)
    assert len(points(mirror, mirrored(mirror, folder), "top1")) == 2


@pytest.mark.parametrize(("event", "status"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_states_are_true_and_a_resumed_run_is_the_same_run(mirror, folder, event, status):
    folder.append("metrics", [row(0)])
    folder.event(event, cause="x")
    mirror.sync(folder)
    first = mirrored(mirror, folder)
    assert first.info.status == status
    folder.event("resumed")
    mirror.sync(folder)
    again = mirrored(mirror, folder)
    assert again.info.status == "RUNNING"
    assert again.info.run_id == first.info.run_id


def test_following_ends_with_the_trainer(mirror, folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    began = time.monotonic()
    follow(mirror, folder, gone.pid)
    assert time.monotonic() - began < 20
    assert mirrored(mirror, folder).info.status == "KILLED"
    folder.event("finished")
    folder.finish({})
    follow(mirror, folder, os.getpid())
    assert mirrored(mirror, folder).info.status == "FINISHED"


def test_resumed_run_is_followed_to_its_end(mirror, folder):
    folder.append("metrics", [row(0), row(1)])
    folder.event("interrupted", cause="SIGTERM")
    mirror.sync(folder)
    folder.event("opened")
    trainer = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    following = threading.Thread(target=follow, args=(mirror, folder, trainer.pid, 0.05))
    following.start()
    time.sleep(0.5)
    assert following.is_alive()
    folder.rewind(0)
    folder.event("resumed")
    again = row(1) | {"time": 1.9e9}  # recorded once more, later
    folder.append("metrics", [again, row(2)])
    folder.event("finished")
    folder.finish({})
    following.join(timeout=30)
    trainer.communicate(b"\n")
    run = mirrored(mirror, folder)
    assert run.info.status == "FINISHED"
    assert [step for step, *_ in points(mirror, run, "top1")] == [0, 1, 2]


def test_names_of_parameters_may_hold_patterns_of_layers(mirror, folder, tmp_path):
    other = RunFolder(tmp_path / "runs" / "other")
    layers = {"bits": "W2A2", "layers": {"blocks.0.*": "W4A4"}}
    name = f"digits/micro/layers-{tmp_path.name}"
    other.open(
        {"id": name, "method": "m", "config": CONFIG | {"quantization": layers}, "parent": None}
    )
    (other.path / "provenance.json").write_text((folder.path / "provenance.json").read_text())
    other.event("started")
    mirror.sync(other)
    assert mirrored(mirror, other).data.params["quantization.layers.blocks.0._"] == "W4A4"


def test_busy_server_is_tried_again(mirror, folder, monkeypatch):
    folder.event("finished")
    folder.finish({})
    sync, calls = mirror.sync, []

    def busy(run):
        calls.append(run)
        if len(calls) == 1:
            raise OSError("connection refused")
        sync(run)

    monkeypatch.setattr(mirror, "sync", busy)
    follow(mirror, folder, os.getpid())
    assert len(calls) == 2
    assert mirrored(mirror, folder).info.status == "FINISHED"


def test_report_is_mirrored_as_artifacts(mirror, tmp_path):
    page = tmp_path / "report"
    (page / "figures").mkdir(parents=True)
    (page / "index.html").write_text("<p>")
    (page / "figures" / "a.png").write_bytes(b"x")
    for _ in range(2):
        mirror.sync_report("digits", "digits", page)
    experiment = mirror.client.get_experiment_by_name("digits").experiment_id
    (run,) = mirror.client.search_runs([experiment], "tags.stage = 'report'")
    names = {item.path for item in mirror.client.list_artifacts(run.info.run_id)}
    assert names == {"index.html", "figures"}


def test_fresh_store_can_be_opened_by_several_processes_at_once(tmp_path):
    uri = f"sqlite:///{tmp_path / 'deep' / 'mlflow.db'}"
    code = (
        "import sys; from pathlib import Path; from ofq.tracking.mirror import Mirror;"
        "m = Mirror(sys.argv[1], Path(sys.argv[2])); m._experiment('digits')"
    )
    command = [sys.executable, "-c", code, uri, str(tmp_path)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    assert [p.communicate() and p.returncode for p in started] == [0] * 4
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["mlflow.db"]
    prepare_store(uri)
