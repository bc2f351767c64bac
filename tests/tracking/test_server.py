"""A shared tracking server on PostgreSQL, and PostgreSQL itself as the store."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from ofq.config import Workspace
from ofq.runs.folder import RunFolder

from tests.support.required import without
from tests.support.run_folders import Training, artifacts, mirrored, points, recorded, until
from tests.support.servers import Server, await_health, free_port
from tests.support.tracking_commands import ofq

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TRAINERS = 8
PASSWORD = "hunter2"
NOBODY = pwd.getpwnam("nobody")


class Postgres:
    """A PostgreSQL server on loopback; it refuses to run as root.

    Args:
        folder: Where its data lies.
    """

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self._user = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid} if os.geteuid() == 0 else {}
        self._run("initdb", "--pgdata", self.data, "--username", "ofq", "--auth", "scram-sha-256",
                  "--pwfile", self._password(), "--no-sync")  # fmt: skip

    @property
    def data(self):
        return str(self.folder / "data")

    def uri(self, database="postgres", password=PASSWORD):
        return f"postgresql://ofq:{password}@127.0.0.1:{self.port}/{database}"

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        log = str(self.folder / "log")
        self._run("pg_ctl", "start", "--wait", "--pgdata", self.data, "--log", log, "-o", options)
        return self

    def stop(self):
        self._run("pg_ctl", "stop", "--pgdata", self.data, "--mode", "immediate")

    def _password(self):
        path = self.folder / "password"
        path.write_text(PASSWORD)
        path.chmod(0o644)
        return str(path)

    def _run(self, program, *arguments):
        done = subprocess.run(
            [found(program), *arguments], cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **self._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def found(program):
    """A program of PostgreSQL's, which Debian keeps off the path."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(beside[-1]) if beside else shutil.which(program)


@pytest.fixture(scope="module")
def postgres():
    if found("initdb") is None:
        without("postgresql", "PostgreSQL isn't installed")
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
        server = Postgres(folder).start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    server = Server(postgres.uri(), tmp_path_factory.mktemp("server"), workers=2).start()
    yield server
    server.kill()


@pytest.mark.timeout(900)  # on a busy machine
def test_eight_trainers_at_once_are_all_mirrored(checkout, server):
    study = checkout / "config/studies/tiny.yaml"
    study.write_text(study.read_text().replace("[0, 1]", str(list(range(TRAINERS)))))
    site = checkout / "config/config.yaml"
    site.write_text(site.read_text() + f"tracking_uri: {server.uri}\n")
    runs = [run for run in Workspace(checkout).grid("tiny").runs().values() if not run.needs()]
    assert len(runs) == TRAINERS
    trainers = [
        subprocess.Popen(
            [sys.executable, "-m", "ofq", "train", run.id], cwd=checkout,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )
        for run in runs
    ]  # fmt: skip
    shown = [trainer.communicate()[0] for trainer in trainers]
    assert [trainer.returncode for trainer in trainers] == [0] * TRAINERS
    if any("MLflow lacks" in text for text in shown):  # a busy machine: as the message says
        assert ofq(checkout, "track", "sync").returncode == 0
    client = MlflowClient(server.uri)
    for run in runs:
        folder = RunFolder(checkout / "results/runs" / run.id)
        until(partial(is_whole, client, folder))  # a mirror may outlive its trainer


def is_whole(client, folder):
    """Whether MLflow has all of a run."""
    return (
        points(client, folder) == recorded(folder)
        and mirrored(client, folder).info.status == "FINISHED"
        and {"metrics.parquet", "result.json"} <= artifacts(client, folder)
    )


def test_runs_move_from_sqlite_to_the_server_and_to_a_database(checkout, server, postgres):
    training = Training(checkout / "results", "moved")
    training.train(0, 1, loss=float("inf"))
    training.train(2, 3, 4)
    training.finish()
    assert ofq(checkout, "track", "sync").returncode == 0
    for _ in range(2):
        assert ofq(checkout, "track", "sync", "--uri", server.uri).returncode == 0
    sqlite = MlflowClient(f"sqlite:///{checkout}/results/mlflow.db")
    moved = MlflowClient(server.uri)
    assert str(points(moved, training.folder)) == str(points(sqlite, training.folder))
    assert artifacts(moved, training.folder) == artifacts(sqlite, training.folder)
    done = ofq(checkout, "track", "sync", MLFLOW_TRACKING_URI=postgres.uri())
    assert f"mirrored 1 of 1 to postgresql://***@127.0.0.1:{postgres.port}/" in done.stdout
    wrong = ofq(checkout, "track", "sync", MLFLOW_TRACKING_URI=postgres.uri(password="wr0ng"))
    assert wrong.returncode == 75
    assert "password authentication failed" in wrong.stdout
    assert "wr0ng" not in wrong.stdout + wrong.stderr


def test_pages_are_served_from_a_store_that_no_command_line_shows(checkout):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "ofq", "track", "ui", "--port", str(port)],
        cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )  # fmt: skip
    try:
        await_health(process, port)
        server = psutil.Process(process.pid)
        lines = [" ".join(p.cmdline()) for p in [server, *server.children(recursive=True)]]
        assert any("mlflow" in line for line in lines)
        assert not any("mlflow.db" in line for line in lines)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
