"""Run folders as runs in MLflow, for browsing.

A mirror only reads run folders, from a process of its own, so a slow or dead tracking server can
never hold up training. What is in MLflow already isn't sent again, so mirroring twice changes
nothing.
"""

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run
from mlflow.exceptions import MlflowException

from ofq.tracking.folder import RunFolder

_ID = "ofq.run"  # the tag by which a run is found again
_SQLITE = "sqlite:///"
_POINTS_PER_CALL = 1000  # MLflow's limit of one batch
_STATES = {"failed": "FAILED", "interrupted": "KILLED"}
_NOT_METRICS = {"epoch", "step", "time"}
_ARTIFACTS = ("run.json", "provenance.json", "metrics.parquet", "layers.parquet", "result.json")


def prepare_store(uri: str) -> None:
    """Create an SQLite store with its tables, if there is none yet.

    Several processes that open a fresh store at once would all fail in its migration; so each
    migrates a file of its own, and the first to finish puts it in place.
    """
    if not uri.startswith(_SQLITE) or Path(uri.removeprefix(_SQLITE)).exists():
        return
    store = Path(uri.removeprefix(_SQLITE))
    store.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.parent) as folder:
        fresh = Path(folder) / "mlflow.db"
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        MlflowClient(f"{_SQLITE}{fresh}").search_experiments(max_results=1)
        try:
            os.link(fresh, store)
        except FileExistsError:
            return


class Mirror:
    """Mirrors run folders into one MLflow store.

    Args:
        uri: MLflow's tracking URI.
        artifacts: Folder for artifacts of an SQLite store; a server keeps its own.
    """

    def __init__(self, uri: str, artifacts: Path) -> None:
        prepare_store(uri)
        self.client = MlflowClient(uri)
        self.artifacts = artifacts.resolve().as_uri() if uri.startswith(_SQLITE) else None
        self._sent: dict[str, int] = {}

    def sync(self, folder: RunFolder) -> None:
        """Bring a run's mirror up to date with its folder, creating it if need be."""
        description, provenance = folder.description(), folder.provenance()
        run = self._find(description["id"], description["config"]["dataset"])
        if run is None:
            run = self._create(description, provenance)
        if run.info.run_id not in self._sent:
            self._describe(run, description["config"])
        run_id = run.info.run_id
        state = _state(folder)
        self._send_rows(run_id, folder)
        if state == "RUNNING":
            self.client.update_run(run_id, status=state)
            return
        for name in _ARTIFACTS:
            if (folder.path / name).exists():
                self.client.log_artifact(run_id, str(folder.path / name))
        ended = int(1000 * folder.events()[-1]["time"])
        self.client.set_terminated(run_id, status=state, end_time=ended)

    def mark_killed(self, folder: RunFolder) -> None:
        """Show a run as killed whose trainer died without a word."""
        description = folder.description()
        run = self._find(description["id"], description["config"]["dataset"])
        if run is not None:
            self.client.set_terminated(run.info.run_id, status="KILLED")

    def sync_report(self, study: str, dataset: str, report: Path) -> None:
        """Mirror a study's report (tables, figures, page) as the artifacts of one run."""
        key = f"report/{study}"
        run = self._find(key, dataset)
        if run is None:
            tags = {_ID: key, "mlflow.runName": key, "study": study, "stage": "report"}
            run = self.client.create_run(self._experiment(dataset), tags=tags)
        self.client.log_artifacts(run.info.run_id, str(report))
        self.client.set_terminated(run.info.run_id)

    def _find(self, key: str, dataset: str) -> Run | None:
        found = self.client.search_runs(
            [self._experiment(dataset)], filter_string=f"tags.`{_ID}` = '{key}'", max_results=1
        )
        return found[0] if found else None

    def _experiment(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        if known is not None:
            return known.experiment_id
        location = f"{self.artifacts}/{name}" if self.artifacts else None
        try:
            return self.client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another mirror was first
            known = self.client.get_experiment_by_name(name)
            if known is None:
                raise
            return known.experiment_id

    def _create(self, description: dict[str, Any], provenance: dict[str, Any]) -> Run:
        config = description["config"]
        return self.client.create_run(
            self._experiment(config["dataset"]), tags=_tags(description, provenance)
        )

    def _describe(self, run: Run, config: dict[str, Any]) -> None:
        """Log parameters and data set, and find out which epochs are there already."""
        run_id = run.info.run_id
        params = [Param(k, str(v)) for k, v in _flat(config).items() if v is not None]
        self.client.log_batch(run_id, params=params)
        if not run.inputs or not run.inputs.dataset_inputs:
            data = Dataset(config["dataset"], f"seed-{config['seed']}", "ofq", config["dataset"])
            self.client.log_inputs(run_id, datasets=[DatasetInput(data)])
        known = self.client.get_metric_history(run_id, "loss")
        self._sent[run_id] = max((point.step for point in known), default=-1)

    def _send_rows(self, run_id: str, folder: RunFolder) -> None:
        """Send the epochs that aren't there yet; resumed training records equal ones again."""
        rows = [row for row in folder.rows("metrics") if row["epoch"] > self._sent[run_id]]
        points = [
            Metric(key, value, int(1000 * row["time"]), row["epoch"])
            for row in rows
            for key, value in row.items()
            if key not in _NOT_METRICS and value is not None
        ]
        for first in range(0, len(points), _POINTS_PER_CALL):
            self.client.log_batch(run_id, metrics=points[first : first + _POINTS_PER_CALL])
        self._sent[run_id] = max((row["epoch"] for row in rows), default=self._sent[run_id])


def follow(mirror: Mirror, folder: RunFolder, trainer: int, interval: float = 0.5) -> None:
    """Mirror a run while it trains, until it has ended or its trainer is gone (then as killed).

    Args:
        mirror: Where to.
        folder: The run's folder.
        trainer: Process id of the trainer.
        interval: Seconds between looks at the folder.
    """
    seen = -1.0
    while True:
        # read before mirroring: what comes later is seen in the next round
        alive, state, changed = _alive(trainer), _state(folder), _changed(folder)
        if changed != seen and _tried(lambda: mirror.sync(folder)):
            seen = changed
        if state != "RUNNING" or not alive:
            break
        time.sleep(interval)
    if state == "RUNNING":
        mirror.mark_killed(folder)
    elif seen != changed:
        mirror.sync(folder)


def _tried(action: Callable[[], None]) -> bool:
    """Do something that a busy or absent server may refuse; whether it worked."""
    try:
        action()
    except (MlflowException, OSError) as error:
        logging.getLogger(__name__).warning("will try again: %s", error)
        return False
    return True


def _state(folder: RunFolder) -> str:
    if folder.result() is not None:
        return "FINISHED"
    events = folder.events()
    last = events[-1]["event"] if events else "started"
    return _STATES.get(last, "RUNNING")


def _changed(folder: RunFolder) -> float:
    names = ("metrics.jsonl", "events.jsonl", "result.json")
    paths = [folder.path / name for name in names]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _tags(description: dict[str, Any], provenance: dict[str, Any]) -> dict[str, str]:
    config = description["config"]
    tags = {
        _ID: description["id"],
        "mlflow.runName": description["id"].rpartition("/")[2],
        "mlflow.source.git.commit": provenance["commit"],
        "study": ",".join(provenance["studies"]),
        "method": ",".join(provenance["methods"]),
        "bits": config["quantization"]["bits"] if config["quantization"] else "FP",
        "model": config["model"],
        "seed": config["seed"],
        "stage": config["stage"],
        "parent": description["parent"],
        "commit": provenance["commit"],
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    # MLflow takes few characters in a name; patterns of layers have others
    return {re.sub(r"[^\w\-./ ]", "_", name): v for name, v in flat.items()}
