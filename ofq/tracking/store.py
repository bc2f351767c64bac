"""MLflow stores: a tracking server, an SQLite file or another database."""

import logging
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ofq.config.places import local_store
from ofq.errors import UserError

# MLflow reads these when imported. Its retries would block a call for minutes; mirrors retry.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")

import mlflow
from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_ARTIFACTS = "mlflow-artifacts"
_PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"))
_SERVER = ("http://", "https://")


def open_store(uri: str) -> MlflowClient:
    """Return a client of a store, which is created or checked first.

    Raises:
        UserError: It is an SQLite file of another MLflow's schema.
    """
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised, and reported once
    if uri.startswith(_SQLITE):
        prepare_store(uri)
    elif not uri.startswith(_SERVER):
        import sqlalchemy

        # fails at once, where MLflow's client would retry for minutes
        sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()
    return MlflowClient(uri)


def artifact_root(uri: str, results: Path) -> str | None:
    """Return the URI of a store's artifacts, beside an SQLite file; None if a server keeps them."""
    if uri.startswith(_SERVER):
        return None
    beside = _file(uri).parent if uri.startswith(_SQLITE) else results
    return (beside / _ARTIFACTS).resolve().as_uri()


def prepare_store(uri: str) -> None:
    """Create an SQLite store with its tables, or check an existing one.

    Several processes that open a fresh store at once would all fail in its migration; so each
    migrates a file of its own, and the first to finish moves it into place.

    Raises:
        UserError: The existing store has another MLflow's schema.
    """
    store = _file(uri)
    if store.exists():
        _check_schema(store)
        _adopt(store)
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.parent) as folder:
        fresh = Path(folder) / "mlflow.db"
        fresh.touch()  # with the umask's permissions, which SQLite ignores
        # a URI, since MLflow writes its first experiment's location into SQL unquoted
        SqlAlchemyStore(local_store(fresh), (store.parent / _ARTIFACTS).resolve().as_uri())
        try:
            os.link(fresh, store)
        except FileExistsError:
            return


def _adopt(store: Path) -> None:
    """Rewrite the artifact paths of a store that was copied or moved with its checkout.

    MLflow stores absolute paths, so a copy would write into the original's artifacts.
    """
    own = (store.parent / _ARTIFACTS).resolve()
    with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=rw", uri=True)) as connection:
        rows = connection.execute(
            "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?",
            (f"file:///%/{_ARTIFACTS}/%",),
        ).fetchall()
        for (place,) in rows:
            before = place.rpartition("/")[0]
            if before == own.as_uri() or _is_folder(before, own):
                continue
            with connection:
                for table, column in _PLACES:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE substr({column}, 1, ?) = ?",
                        (own.as_uri(), len(before) + 1, len(before) + 1, f"{before}/"),
                    )


def _is_folder(uri: str, folder: Path) -> bool:
    """Return whether a URI is a folder under another name, as where it is mounted twice."""
    try:
        return Path(url2pathname(urlsplit(uri).path)).samefile(folder)
    except OSError:
        return False


def _file(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE).partition("?")[0])


def _check_schema(store: Path) -> None:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    revision = _schema(store)
    if revision == scripts.get_current_head():
        return
    anew = "or move the file away, and `ofq track sync` makes it anew from the run folders"
    if revision in {script.revision for script in scripts.walk_revisions()}:
        raise UserError(
            f"{store} was made by an older MLflow than {mlflow.__version__}: while nothing trains, "
            f"back it up and run `mlflow db upgrade {_SQLITE}{store}`; {anew}"
        )
    if revision is None:
        raise UserError(f"{store} isn't an MLflow store: move the file away; it is made anew")
    raise UserError(
        f"{store} was made by a newer MLflow than {mlflow.__version__}: install that one, {anew}"
    )


def _schema(store: Path) -> str | None:
    """Return the schema revision of an SQLite file; None if it isn't MLflow's."""
    with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=rw", uri=True)) as connection:
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        except sqlite3.OperationalError:
            raise  # busy
        except sqlite3.DatabaseError:
            return None
        if "alembic_version" not in tables:
            return None
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
