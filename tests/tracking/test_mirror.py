"""The mirror in a real SQLite store."""

import contextlib
import itertools
import json
import math
import subprocess
import sys
import threading
import time

import pytest
from mlflow.exceptions import MlflowException

from ofq.runs.folder import RunFolder
from ofq.tracking.mirror import Mirror, comparison_path
from ofq.tracking.mirroring import follow
from ofq.tracking.snapshot import POINTS, Snapshot

from tests.support.run_folders import (
    CONFIG,
    Training,
    artifacts,
    find,
    mirrored,
    points,
    recorded,
    until,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def mirror(uri, tmp_path):
    return Mirror(uri, tmp_path)


@pytest.fixture
def training(tmp_path):
    training = Training(tmp_path, tmp_path.name)
    yield training
    training.lock.release()


def test_run_is_mirrored_live_and_complete(mirror, training):
    folder = training.folder
    training.train(0)
    mirror.sync(folder)
    run = mirrored(mirror.client, folder)
    assert run.info.status == "RUNNING"
    assert run.info.start_time == int(1000 * folder.events()[0]["time"])
    assert run.data.params["training.lr"] == "0.001"
    tags = run.data.tags
    expected = {"study": "digits,ablation", "method": "statsq+qkr", "bits": "W2A2", "seed": "3"}
    expected |= {"stage": "qat", "model": "micro", "parent": "digits/micro/fp", "commit": "abc"}
    assert {key: tags[key] for key in expected} == expected
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "cd" * 18)
    training.train(1, 2)
    mirror.sync(folder)
    assert points(mirror.client, folder) == recorded(folder)
    training.train(3, 4)
    training.finish()
    mirror.sync(folder)
    assert mirrored(mirror.client, folder).info.status == "FINISHED"
    assert points(mirror.client, folder) == recorded(folder)
    files = {"run.json", "provenance.json", "events.jsonl", "metrics.parquet", "result.json"}
    assert artifacts(mirror.client, folder) == files
    history = mirror.client.get_metric_history(run.info.run_id, "top1")
    assert [p.timestamp for p in history] == [1_800_000_000_000 + 1000 * e for e in range(5)]


def test_mirroring_again_changes_nothing(uri, training, tmp_path):
    training.train(0, 1, 2, 3, 4)
    training.finish()
    Mirror(uri, tmp_path).sync(training.folder)
    mirror = Mirror(uri, tmp_path)
    before = mirrored(mirror.client, training.folder).to_dictionary()
    mirror.sync(training.folder)
    assert mirrored(mirror.client, training.folder).to_dictionary() == before


def test_run_without_events_is_not_mirrored_yet(mirror, tmp_path):
    folder = RunFolder(tmp_path / "runs" / "digits" / "micro" / "new")
    folder.open({"id": f"digits/micro/{tmp_path.name}", "config": CONFIG, "parent": None})
    mirror.sync(folder)
    assert find(mirror.client, folder.description()["id"]) == []


@pytest.mark.parametrize(
    ("event", "status"), [("failed", "FAILED"), ("interrupted", "KILLED"), (None, "KILLED")]
)
def test_states_are_true_and_a_resumed_run_is_the_same_run(mirror, training, event, status):
    folder = training.folder
    training.train(0, 1)
    mirror.sync(folder)
    training.stop(event)
    mirror.sync(folder)
    first = mirrored(mirror.client, folder)
    assert first.info.status == status
    training.begin()
    mirror.sync(folder)
    again = mirrored(mirror.client, folder)
    assert again.info.status == "RUNNING"
    assert again.info.run_id == first.info.run_id


def test_stale_running_is_repaired_by_any_later_sync(uri, training, tmp_path):
    training.train(0)
    Mirror(uri, tmp_path).sync(training.folder)
    training.stop()  # as if killed, and its mirror with it
    mirror = Mirror(uri, tmp_path)
    mirror.sync(training.folder)
    assert mirrored(mirror.client, training.folder).info.status == "KILLED"


def test_epochs_that_are_recorded_again_are_not_doubled(mirror, training):
    folder = training.folder
    training.train(0, 1, 2)
    mirror.sync(folder)
    run_id = mirrored(mirror.client, folder).info.run_id
    training.stop()
    folder.rewind(10)
    training.begin()
    mirror.sync(folder)
    training.train(2, 3, 4, later=600)
    mirror.sync(folder)
    training.finish()
    mirror.sync(folder)
    assert mirrored(mirror.client, folder).info.run_id == run_id
    assert points(mirror.client, folder) == recorded(folder)


def test_epochs_that_come_to_other_numbers_replace_the_old_ones(mirror, training):
    folder = training.folder
    training.train(0, 1, 2)
    mirror.sync(folder)
    training.stop()
    folder.rewind(10)
    training.begin()
    training.train(2, 3, 4, later=600, loss=0.125)
    mirror.sync(folder)
    training.finish()
    mirror.sync(folder)
    assert points(mirror.client, folder) == recorded(folder)


def test_point_that_a_stray_mirror_doubled_is_mended_at_the_end(mirror, training):
    folder = training.folder
    training.train(0, 1, 2, 3, 4)
    mirror.sync(folder)
    run_id = mirrored(mirror.client, folder).info.run_id
    mirror.client.log_metric(run_id, "loss", 1 / 5, timestamp=17, step=2)
    training.finish()
    mirror.sync(folder)
    assert points(mirror.client, folder) == recorded(folder)


def test_two_runs_of_one_folder_become_one_again(uri, training, tmp_path):
    """Two hosts may make one at the same moment; whoever looks later keeps the same one."""
    training.train(0, 1, 2, 3, 4)
    mirror, other = Mirror(uri, tmp_path), Mirror(uri, tmp_path)
    mirror.sync(training.folder)
    first = mirrored(mirror.client, training.folder)
    other.client.create_run(
        first.info.experiment_id, start_time=first.info.start_time, tags=first.data.tags
    )
    assert len(find(mirror.client, training.id)) == 2
    training.finish()
    other.sync(training.folder)
    assert points(mirror.client, training.folder) == recorded(training.folder)
    mirror.sync(training.folder)
    assert points(mirror.client, training.folder) == recorded(training.folder)


def test_mirrors_at_once_make_one_run_without_doubles(uri, training, tmp_path):
    """A stray `ofq track follow`, the trainer's own mirror and a sync, all while epochs come in."""
    folder = training.folder

    def keep_syncing():
        mirror = Mirror(uri, tmp_path)
        while not folder.complete():
            with contextlib.suppress(MlflowException):  # that the other was first; tried again
                mirror.sync(folder)

    threads = [threading.Thread(target=keep_syncing) for _ in range(4)]
    for thread in threads:
        thread.start()
    for epoch in range(5):
        training.train(epoch)
        time.sleep(0.2)
    training.finish()
    for thread in threads:
        thread.join()
    mirror = Mirror(uri, tmp_path)
    mirror.sync(folder)
    assert points(mirror.client, folder) == recorded(folder)
    assert mirrored(mirror.client, folder).info.status == "FINISHED"


def test_run_trained_anew_is_another_run(mirror, training, tmp_path):
    """Two people may train the same run on one server; neither spoils the other's record."""
    training.train(0, 1, 2, 3, 4)
    training.finish()
    mirror.sync(training.folder)
    again = Training(tmp_path / "elsewhere", tmp_path.name)
    again.train(0, loss=0.5)
    mirror.sync(again.folder)
    again.lock.release()
    assert len(find(mirror.client, training.id)) == 2


def test_long_run_is_thinned_evenly_and_stays_so_while_it_grows(mirror, tmp_path):
    training = Training(tmp_path, f"long-{tmp_path.name}", epochs=1000)
    for first in range(0, 1001, 143):
        training.train(*range(first, min(first + 143, 1001)))
        mirror.sync(training.folder)
    training.finish()
    mirror.sync(training.folder)
    found = [epoch for key, epoch, _ in points(mirror.client, training.folder) if key == "loss"]
    assert found == [*range(0, 1000, 4), 1000]
    assert len(found) <= POINTS
    assert "metrics.parquet" in artifacts(mirror.client, training.folder)


@pytest.mark.parametrize("epochs", [1, 299, 300, 301, 12_345])
def test_thinned_run_has_its_ends_and_a_few_hundred_points(tmp_path, epochs):
    training = Training(tmp_path, epochs=epochs)
    training.train(*range(epochs + 1))
    chosen = [p.epoch for p in Snapshot.take(training.folder).points() if p.key == "loss"]
    training.lock.release()
    assert (chosen[0], chosen[-1]) == (0, epochs)
    assert min(epochs + 1, POINTS // 2) <= len(chosen) <= POINTS + 2
    assert len({b - a for a, b in itertools.pairwise(chosen[:-1])}) <= 1


def test_numbers_that_are_not_finite_are_nan_and_named_in_a_tag(mirror, training):
    training.train(0)
    training.train(1, loss=math.inf, top1=-math.inf)
    training.train(2, loss=math.nan)
    for _ in range(2):
        mirror.sync(training.folder)
    training.stop("failed", cause="loss is not finite")
    mirror.sync(training.folder)
    found = points(mirror.client, training.folder)
    assert [e for key, e, value in found if key == "loss" and math.isnan(value)] == [1, 2]
    assert [e for key, e, value in found if key == "top1" and math.isnan(value)] == [1]
    finite = [p for p in found if not math.isnan(p[2])]
    assert finite == [p for p in recorded(training.folder) if math.isfinite(p[2])]
    tag = mirrored(mirror.client, training.folder).data.tags["nonfinite"]
    assert tag == "loss is inf after epoch 1, top1 is -inf after epoch 1, loss is nan after epoch 2"


def test_names_of_parameters_may_hold_patterns_of_layers(mirror, tmp_path):
    layers = {"bits": "W2A2", "layers": {"blocks.0.*": "W4A4"}}
    training = Training(tmp_path, tmp_path.name, config=CONFIG | {"quantization": layers})
    mirror.sync(training.folder)
    training.lock.release()
    params = mirrored(mirror.client, training.folder).data.params
    assert params["quantization.layers.blocks.0._"] == "W4A4"


def test_following_ends_when_the_trainer_was_killed(mirror, training):
    code = (
        "import sys, time; from pathlib import Path; from ofq.runs.lock import RunLock;"
        "RunLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    training.stop()
    command = [sys.executable, "-c", code, str(training.folder.path)]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE)
    trainer.stdout.readline()
    following = threading.Thread(target=follow, args=(mirror, training.folder))
    following.start()
    until(lambda: mirrored(mirror.client, training.folder).info.status == "RUNNING")
    trainer.kill()
    following.join(timeout=120)
    trainer.communicate()
    assert not following.is_alive()
    assert mirrored(mirror.client, training.folder).info.status == "KILLED"


def test_run_is_followed_to_its_end(mirror, training):
    following = threading.Thread(target=follow, args=(mirror, training.folder))
    training.train(0, 1)
    following.start()
    until(lambda: points(mirror.client, training.folder) == recorded(training.folder))
    training.train(2, 3, 4)
    training.finish()
    following.join(timeout=120)
    assert not following.is_alive()
    assert points(mirror.client, training.folder) == recorded(training.folder)
    assert mirrored(mirror.client, training.folder).info.status == "FINISHED"


def test_mirror_leaves_a_run_to_the_mirror_of_its_next_attempt(mirror, training):
    following = threading.Thread(target=follow, args=(mirror, training.folder))
    following.start()
    until(lambda: find(mirror.client, training.id))
    training.stop()
    training.begin()
    following.join(timeout=120)
    assert not following.is_alive()
    assert mirrored(mirror.client, training.folder).info.status == "RUNNING"


def test_report_is_mirrored_as_artifacts(mirror, tmp_path):
    page = tmp_path / "report"
    (page / "figures").mkdir(parents=True)
    (page / "index.html").write_text("<p>")
    (page / "figures" / "a.png").write_bytes(b"x")
    for _ in range(2):
        mirror.sync_report("digits", page)
    experiment = mirror.client.get_experiment_by_name("reports").experiment_id
    (run,) = mirror.client.search_runs([experiment])
    names = {item.path for item in mirror.client.list_artifacts(run.info.run_id)}
    assert names == {"index.html", "figures"}


def test_experiment_offers_its_runs_with_the_columns_to_compare(mirror, training):
    training.train(0, oscillation_rate=0.1, flips=0.2)
    mirror.sync(training.folder)
    experiment = mirror.client.get_experiment_by_name(training.id.partition("/")[0])
    view = json.loads(experiment.tags["mlflow.sharedViewState.compare"])
    run = mirrored(mirror.client, training.folder)
    for column in view["selectedColumns"]:
        kind, _, name = column.partition(".")
        known = run.data.tags if kind == "tags" else run.data.metrics
        assert name.strip("`") in known, column
    assert (
        f"({comparison_path(experiment.experiment_id)})" in experiment.tags["mlflow.note.content"]
    )


def test_what_is_wrong_with_a_folder_is_raised(mirror, training):
    (training.folder.path / "provenance.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        mirror.sync(training.folder)
