"""What a trainer does about its mirror."""

import io
import subprocess
import sys
import time

import pytest
from rich.console import Console

from ofq.runs.folder import RunFolder
from ofq.tracking.mirroring import await_mirror, start_mirror
from ofq.tracking.sent import Sent, note_sent
from ofq.tracking.snapshot import Snapshot

from tests.support.run_folders import Training

URI = "http://127.0.0.1:9"


@pytest.fixture
def training(tmp_path):
    training = Training(tmp_path, epochs=20)
    yield training
    training.lock.release()


@pytest.fixture
def hanging():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def said(process, training, deadline=None):
    shown = io.StringIO()
    await_mirror(process, training.folder, training.id, URI, Console(file=shown), deadline)
    return shown.getvalue()


def test_hanging_mirror_is_left_at_the_deadline_with_what_mlflow_lacks(training, hanging):
    training.train(*range(21))
    note_sent(training.folder, URI, Sent("id", 4))
    began = time.monotonic()
    assert said(hanging, training, began + 0.5) == (
        f"MLflow lacks epochs 5 to 20 and the final files of {training.id}; "
        f"`ofq track sync {training.id}` sends them\n"
    )
    assert time.monotonic() - began < 10


def test_what_another_store_has_does_not_count(training, hanging):
    training.train(0)
    content = Snapshot.take(training.folder).digest()
    note_sent(training.folder, "http://127.0.0.1:10", Sent("id", 0, content))
    assert "lacks epoch 0 and the final files" in said(hanging, training, time.monotonic())


def test_nothing_is_said_when_all_is_mirrored(training):
    training.train(0, 1)
    training.stop("interrupted", cause="SIGTERM", seconds=1.0)
    note_sent(training.folder, URI, Sent("id", 1, Snapshot.take(training.folder).digest()))
    done = subprocess.Popen([sys.executable, "-c", ""])
    assert said(done, training) == ""
    training.begin()  # and goes on without a new epoch
    training.finish()
    assert "MLflow lacks the final files" in said(done, training)


def test_mirror_that_cannot_be_started_is_no_reason_not_to_train(tmp_path, caplog):
    assert start_mirror(RunFolder(tmp_path / "missing"), "digits/micro/x") is None
    assert "`ofq track sync digits/micro/x` makes up for it" in caplog.text


def test_mirror_that_a_server_holds_up_leaves_some_time_after_its_run(training):
    code = (
        "import sys, time; from pathlib import Path; from ofq.runs.folder import RunFolder;"
        "from ofq.tracking.mirroring import leave_with;"
        "leave_with(RunFolder(Path(sys.argv[1])), 0.5); time.sleep(60)"
    )
    training.stop("interrupted", cause="SIGTERM", seconds=1.0)
    done = subprocess.run(
        [sys.executable, "-c", code, str(training.folder.path)], capture_output=True, timeout=50
    )
    assert done.returncode == 1
    assert b"gave up" in done.stderr
