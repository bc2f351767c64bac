"""A tracking server that is dead, hung, killed midway and back again: training doesn't notice."""

import os
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from ofq.config import Workspace
from ofq.runs.folder import RunFolder
from ofq.tracking.mirroring import WAIT, start_mirror
from ofq.tracking.store import prepare_store

from tests.support.run_folders import Training, mirrored, points, recorded, until
from tests.support.servers import Server, dead_port, hung_server
from tests.support.tracking_commands import ofq

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.integration]

SECRET = "hunter2"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    store = f"sqlite:///{folder}/mlflow.db"
    prepare_store(store)
    server = Server(store, folder).start()
    yield server
    server.kill()


def train(checkout, run, uri):
    """Train a run in a process of its own, as Snakemake does."""
    return subprocess.run(
        [sys.executable, "-m", "ofq", "train", run.id], cwd=checkout,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def runs(checkout):
    """Short runs that need no other, and their folders."""
    found = [run for run in Workspace(checkout).grid("tiny").runs().values() if not run.needs()]
    return [(run, RunFolder(checkout / "results/runs" / run.id)) for run in found]


def check_that_sync_completes(checkout, server, folder):
    done = ofq(checkout, "track", "sync", "--uri", server.uri)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(server.uri)
    assert points(client, folder) == recorded(folder)
    assert mirrored(client, folder).info.status == "FINISHED"


def test_dead_server_costs_no_run_and_its_password_reaches_no_log(checkout, server, runs):
    run, folder = runs[0]
    uri = f"http://me:{SECRET}@{dead_port()}"
    done = train(checkout, run, uri)
    assert done.returncode == 0, done.stderr
    lacking = f"MLflow lacks epochs 0 to 2 and the final files of {run.id}; "
    assert f"{lacking}`ofq track sync {run.id}` sends them" in done.stdout
    path = folder.path / "mirror.log"
    until(lambda: "gave up" in path.read_text())  # the mirror may outlive the trainer
    log = path.read_text()
    assert "will try again: MlflowException" in log
    assert "http://***@127.0.0.1" in log
    assert "gave up: MLflow lacks epochs 0 to 2 and the final files" in log
    assert "Traceback" not in log
    failed = ofq(checkout, "track", "sync", MLFLOW_TRACKING_URI=uri)
    assert failed.returncode == 75
    assert "mirrored 0 of 1 to http://***@127.0.0.1" in failed.stdout
    assert f"ofq track sync {run.id}" in failed.stdout
    for path in checkout.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_bytes().decode(errors="replace")
    assert SECRET not in done.stdout + done.stderr + failed.stdout + failed.stderr
    check_that_sync_completes(checkout, server, folder)


def test_hung_server_is_waited_for_a_bounded_time(checkout, server, runs):
    run, folder = runs[1]
    with hung_server() as uri:
        done = train(checkout, run, uri)
        assert done.returncode == 0, done.stderr
        assert f"MLflow lacks epochs 0 to 2 and the final files of {run.id}" in done.stdout
        waited = time.time() - folder.events()[-1]["time"]
        assert waited < WAIT + 60
        began = time.monotonic()
        failed = ofq(checkout, "track", "sync", run.id, MLFLOW_TRACKING_URI=uri)
        assert failed.returncode == 75
        assert time.monotonic() - began < 90
        assert "Traceback" not in (folder.path / "mirror.log").read_text()
    check_that_sync_completes(checkout, server, folder)


def test_server_killed_midway_and_back_again_misses_nothing(checkout, server, monkeypatch):
    training = Training(checkout / "results", "killed")
    site = checkout / "config/config.yaml"
    site.write_text(site.read_text() + f"tracking_uri: {server.uri}\n")
    monkeypatch.chdir(checkout)
    mirror = start_mirror(training.folder, training.id)
    client = MlflowClient(server.uri)
    training.train(0, 1)
    until(lambda: points(client, training.folder) == recorded(training.folder))
    server.kill()
    training.train(2, 3)
    until(lambda: "will try again" in (training.folder.path / "mirror.log").read_text())
    server.start()
    training.train(4)
    training.finish()
    assert mirror.wait(120) == 0
    assert points(client, training.folder) == recorded(training.folder)
    assert mirrored(client, training.folder).info.status == "FINISHED"
    log = (training.folder.path / "mirror.log").read_text()
    assert "works again" in log
    assert "Traceback" not in log
    check_that_sync_completes(checkout, server, training.folder)
