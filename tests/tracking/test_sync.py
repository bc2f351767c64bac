"""`ofq track sync`: which run folders and reports, where to, and what becomes of failures."""

import shutil

import pytest
from mlflow import MlflowClient

from ofq.config import Workspace
from ofq.tracking.store import prepare_store

from tests.support.run_folders import Training, artifacts, find, mirrored, points, recorded
from tests.support.terminals import read_terminal, start_in_terminal
from tests.support.tracking_commands import ofq

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """An empty store, which takes a while to make."""
    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    prepare_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def sync(checkout, fresh):
    """A function that runs the command in a checkout with an empty store."""
    (checkout / "results").mkdir()
    shutil.copy(fresh, checkout / "results")
    return lambda *arguments: ofq(checkout, "track", "sync", *arguments)


def ended(checkout, name):
    training = Training(checkout / "results", name)
    training.train(0, 1, 2, 3, 4)
    training.finish()
    return training


@pytest.fixture
def mixed(checkout):
    """A checkout with runs that no study has: ended, interrupted and just begun."""
    done, interrupted = ended(checkout, "done"), Training(checkout / "results", "stopped")
    interrupted.train(0, 1)
    interrupted.stop("interrupted", cause="SIGTERM", seconds=2.0)
    begun = Training(checkout / "results", "begun")
    yield done, interrupted, begun
    begun.lock.release()


def client(checkout, name="results/mlflow.db"):
    return MlflowClient(f"sqlite:///{checkout / name}")


def test_everything_is_mirrored_once_however_often(checkout, sync, mixed):
    for _ in range(2):
        done = sync()
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("mirrored 3 of 3 to sqlite:///")
    states = [mirrored(client(checkout), run.folder).info.status for run in mixed]
    assert states == ["FINISHED", "KILLED", "RUNNING"]
    for run in mixed:
        assert points(client(checkout), run.folder) == recorded(run.folder)


def test_moving_to_another_store_loses_and_doubles_nothing(checkout, fresh, sync, mixed):
    page = checkout / "reports/tiny"
    page.mkdir(parents=True)
    (page / "index.html").write_text("<p>")
    assert sync().returncode == 0
    (checkout / "moved").mkdir()
    shutil.copy(fresh, checkout / "moved")
    for _ in range(2):
        done = sync("--uri", f"sqlite:///{checkout}/moved/mlflow.db")
        assert done.returncode == 0, done.stderr
    old, new = client(checkout), client(checkout, "moved/mlflow.db")
    for run in mixed:
        assert points(new, run.folder) == points(old, run.folder) == recorded(run.folder)
        assert artifacts(new, run.folder) == artifacts(old, run.folder)
        before, after = mirrored(old, run.folder), mirrored(new, run.folder)
        assert (after.info.start_time, after.data.params, after.data.tags) == (
            before.info.start_time, before.data.params, before.data.tags,
        )  # fmt: skip
    (report,) = find(new, "tiny", "reports")
    assert [item.path for item in new.list_artifacts(report.info.run_id)] == ["index.html"]


def test_deleted_store_is_made_anew(checkout, sync, mixed):
    sync()
    (checkout / "results/mlflow.db").unlink()
    assert sync().returncode == 0
    for run in mixed:
        assert points(client(checkout), run.folder) == recorded(run.folder)


def test_runs_are_chosen_by_id_or_study(checkout, sync, mixed):
    run = next(iter(Workspace(checkout).grid("tiny").runs()))
    of_study = ended(checkout, "of-study").folder.path.rename(checkout / "moving")
    shutil.copytree(of_study, checkout / "results/runs" / run)
    assert "mirrored 1 of 1" in sync("tiny").stdout
    assert "mirrored 2 of 2" in sync(mixed[0].id, "tiny", mixed[0].id).stdout
    assert find(client(checkout), mixed[1].id) == []


def test_unknown_name_is_an_error_that_names_what_there_is(checkout, sync, mixed):
    done = sync("tinny")
    assert done.returncode == 2
    assert "'tinny' is neither a study nor a run that was started" in done.stderr
    assert "did you mean 'tiny'?" in done.stderr


def test_broken_run_folder_does_not_stop_the_others(checkout, sync, mixed):
    broken = ended(checkout, "broken")
    (broken.folder.path / "provenance.json").write_text("{")
    done = sync()
    assert done.returncode == 75
    assert f"run {broken.id}: UserError: " in done.stdout
    assert f"mirrored 3 of 4 to sqlite:///{checkout}/results/mlflow.db; the rest" in done.stdout
    assert done.stdout.endswith(f"ofq track sync {broken.id}\n")
    for run in mixed:
        assert points(client(checkout), run.folder) == recorded(run.folder)


def test_store_of_another_mlflow_is_one_message(checkout, sync, mixed):
    (checkout / "results/mlflow.db").write_bytes(b"")
    done = sync()
    assert done.returncode == 2
    assert "isn't an MLflow store" in done.stderr
    assert "Traceback" not in done.stderr


def test_terminal_gets_a_bar_and_a_pipe_plain_lines(checkout, sync, mixed):
    assert "\x1b" not in sync().stdout
    process, main = start_in_terminal("track", "sync", cwd=checkout)
    shown = read_terminal(main)
    assert process.wait() == 0
    assert "\x1b" in shown
    assert "3/3" in shown
