"""Opening SQLite stores: fresh, of this MLflow, and of others."""

import sqlite3
import subprocess
import sys

import pytest

from ofq.errors import UserError
from ofq.tracking.store import artifact_root, prepare_store

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
