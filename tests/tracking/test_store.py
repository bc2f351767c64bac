"""Opening SQLite stores: fresh, of this MLflow, and of others."""

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys

import pytest

from ofq.atomic import write_file
from ofq.config.places import local_store
from ofq.errors import UserError
from ofq.tracking.mirror import Mirror
from ofq.tracking.store import artifact_root, prepare_store

from tests.support.run_folders import Training

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path):
    """A function that makes a store and gives it another schema's revision."""

    def make(revision):
        path = tmp_path / "mlflow.db"
        prepare_store(f"sqlite:///{path}")
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.close()
        return f"sqlite:///{path}"

    return make


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


def test_store_of_an_older_mlflow_is_refused_with_the_command_that_mends_it(store):
    uri = store("451aebb31d03")
    with pytest.raises(UserError, match=f"older MLflow.*`mlflow db upgrade {uri}`"):
        prepare_store(uri)


def test_store_of_a_newer_mlflow_is_refused(store):
    with pytest.raises(UserError, match="newer MLflow"):
        prepare_store(store("ffffffffffff"))


@pytest.mark.parametrize("content", [b"", b"not a database, but some text" * 50])
def test_file_that_is_no_store_is_refused(tmp_path, content):
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    with pytest.raises(UserError, match="isn't an MLflow store"):
        prepare_store(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_artifacts_lie_beside_an_sqlite_file_and_with_a_server(tmp_path):
    beside = (tmp_path / "mlflow-artifacts").as_uri()
    assert artifact_root(f"sqlite:///{tmp_path}/other.db", tmp_path / "results") == beside
    assert artifact_root("postgresql://db/mlflow", tmp_path) == beside
    assert artifact_root("https://mlflow.example.org", tmp_path) is None


@pytest.mark.parametrize(
    "name",
    ["a?b#c%25", 'it\'s "quoted"', "{x} $(touch x)", "new\nline;&", "-üñ→"],
)
def test_mirror_works_in_a_folder_of_any_name_and_writes_nothing_outside(
    tmp_path, monkeypatch, name
):
    root = tmp_path / "outer" / name
    (root / "results").mkdir(parents=True)
    monkeypatch.chdir(root)
    training = Training(root / "results")
    training.train(0, 1)
    training.finish()
    mirror = Mirror(local_store(root / "results/mlflow.db"), root / "results")
    mirror.sync(training.folder)
    assert {path.name for path in (tmp_path / "outer").iterdir()} == {name}
    assert {path.name for path in root.iterdir()} == {"results"}
    kept = list((root / "results/mlflow-artifacts").rglob("metrics.parquet"))
    assert len(kept) == 1


def test_copied_checkout_mirrors_into_its_own_artifacts(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "it's a copy?"
    training = Training(original)
    training.train(0)
    training.stop("interrupted")
    Mirror(f"sqlite:///{original}/mlflow.db", original).sync(training.folder)
    shutil.copytree(original, copy)
    with contextlib.chdir(copy):
        prepare_store(local_store(copy / "mlflow.db"))
    for root in (original, copy):
        with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection:
            places = connection.execute("SELECT artifact_uri FROM runs").fetchall()
            places += connection.execute("SELECT artifact_location FROM experiments").fetchall()
        assert len(places) == 3
        assert all(place.startswith(f"{root.as_uri()}/mlflow-artifacts/") for (place,) in places)


def test_store_seen_through_another_path_keeps_its_places(tmp_path):
    original = tmp_path / "original"
    training = Training(original)
    training.train(0)
    training.finish()
    Mirror(f"sqlite:///{original}/mlflow.db", original).sync(training.folder)
    before = (original / "mlflow.db").read_bytes()
    (tmp_path / "link").symlink_to(original)
    prepare_store(f"sqlite:///{tmp_path}/link/mlflow.db")
    assert (original / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_new_files_follow_the_umask(tmp_path, mask):
    def private(path):
        path.write_text("x")
        path.chmod(0o600)

    before = os.umask(mask)
    try:
        write_file(tmp_path / "file", private)
        prepare_store(f"sqlite:///{tmp_path}/mlflow.db")
    finally:
        os.umask(before)
    for name in ("file", "mlflow.db"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
