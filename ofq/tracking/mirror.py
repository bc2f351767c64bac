"""Mirror of run folders as runs in MLflow, for browsing.

A mirror only reads run folders, in a process of its own, so a slow or dead tracking server never
delays training. While a run trains, its new epochs are appended. Once it has ended, MLflow is
compared with the folder, point by point, and corrected where they differ; so mirroring is
idempotent, also with several mirrors at once.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# opens MLflow's store, and so has to come before MLflow
from ofq.tracking.store import artifact_root, open_store  # isort: skip
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from ofq.runs.folder import CORRECT, RESULT, TABLES, RunFolder
from ofq.tracking.sent import Sent, note_sent
from ofq.tracking.snapshot import Snapshot

_ID = "ofq.run"  # the tag that identifies a run's mirror
_CONTENT = "ofq.content"  # the tag with the digest of a completely mirrored run
_STATES = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_VIEW_KEY = "compare"
_VIEW = f"mlflow.sharedViewState.{_VIEW_KEY}"  # MLflow's tag of a view that is shared by a link
REPORTS = "reports"
"""Experiment of the studies' reports, beside one for each data set."""
COMPARISON = json.dumps(
    {
        "selectedColumns": [
            *(f"tags.`{tag}`" for tag in ("method", "bits", "seed", "stage")),
            *(f"metrics.`{name}`" for name in ("top1", "oscillation_rate", "flips")),
        ],
        "orderByKey": "metrics.`top1`",
        "orderByAsc": False,
    }
)
"""View of an experiment's runs by which to compare them, as MLflow stores it."""
_POINTS_PER_CALL, _PARAMS_PER_CALL, _DIGEST = 1000, 100, 36  # MLflow's limits
_FILES = (
    *("run.json", "provenance.json", "events.jsonl"),
    *(f"{table}.parquet" for table in TABLES),
    CORRECT,
    RESULT,
)


@dataclass
class _There:
    """A run in MLflow, and the points that it has, as pairs of metric and epoch."""

    run_id: str
    points: set[tuple[str, int]]


class Mirror:
    """Mirror of run folders in one MLflow store.

    Args:
        uri: MLflow's tracking URI.
        results: The results folder, which holds the artifacts of a database.
    """

    def __init__(self, uri: str, results: Path) -> None:
        self.uri = uri
        self._artifacts = artifact_root(uri, results)
        self._live: dict[str, _There] = {}

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; opens the store on first use, and creates it if needed."""
        return open_store(self.uri)

    def check(self) -> None:
        """Query the store, which raises MLflow's error if it doesn't answer."""
        self.client.search_experiments(max_results=1)

    def sync(self, folder: RunFolder) -> None:
        """Update a run's mirror from its folder; create it if needed.

        Raises:
            UserError: It isn't a run folder, or the store is of another MLflow's schema.
            Exception: Any error of MLflow's, if the store doesn't answer or refuses.
        """
        snapshot = Snapshot.take(folder)
        if snapshot is None:
            return
        there = self._live.pop(snapshot.id, None)  # after an error its points are unknown
        if there is None or snapshot.state != "running":
            run = self._claim(snapshot)
            if _up_to_date(run, snapshot):
                self._note_all(folder, run.info.run_id, snapshot)
                return
            there = self._compare(run, snapshot)
        self._send_points(there, snapshot)
        note_sent(folder, self.uri, Sent(there.run_id, snapshot.last_epoch))
        if snapshot.state == "running":
            self.client.update_run(there.run_id, status="RUNNING")
            self._live[snapshot.id] = there
        else:
            self._finish(there.run_id, snapshot, folder)

    def sync_report(self, study: str, report: Path) -> None:
        """Mirror a study's report (tables, figures, page) as the artifacts of one run."""
        runs = self._find(REPORTS, f"tags.`{_ID}` = '{study}'")
        if not runs:
            tags = {_ID: study, "mlflow.runName": study, "study": study}
            runs = [self.client.create_run(self._experiment(REPORTS), tags=tags)]
        self.client.log_artifacts(runs[0].info.run_id, str(report))
        self.client.set_terminated(runs[0].info.run_id)

    def _finish(self, run_id: str, snapshot: Snapshot, folder: RunFolder) -> None:
        record = folder.record()
        for name in _FILES:
            if record is not None and name in record.names:
                record.verify(name)
            if (folder.path / name).exists():
                self.client.log_artifact(run_id, str(folder.path / name))
        self.client.set_terminated(run_id, _STATES[snapshot.state], snapshot.ended)
        self.client.set_tag(run_id, _CONTENT, snapshot.digest())
        self._note_all(folder, run_id, snapshot)

    def _note_all(self, folder: RunFolder, run_id: str, snapshot: Snapshot) -> None:
        note_sent(folder, self.uri, Sent(run_id, snapshot.last_epoch, snapshot.digest()))

    def _claim(self, snapshot: Snapshot) -> Run:
        """Return the one run in MLflow for a run folder; create it if needed.

        If several mirrors create one at the same moment, on any hosts, each finds all of them
        afterwards, and all keep the same one.
        """
        dataset = snapshot.config["dataset"]
        condition = f"tags.`{_ID}` = '{snapshot.id}' and attributes.start_time = {snapshot.started}"
        runs = self._find(dataset, condition)
        if not runs:
            experiment, tags = self._experiment(dataset), _tags(snapshot)
            self.client.create_run(experiment, start_time=snapshot.started, tags=tags)
            runs = self._find(dataset, condition)
        first, *others = sorted(runs, key=lambda run: run.info.run_id)
        for run in others:
            self.client.delete_run(run.info.run_id)
        return first

    def _compare(self, run: Run, snapshot: Snapshot) -> _There:
        """Compare MLflow's points with the folder; replace the run in MLflow if they contradict it.

        They do when a training resumed from a checkpoint and reached other numbers than before it
        was killed, since MLflow can't delete points.
        """
        points = self._points(run)
        if not _agree(points, snapshot):
            self.client.delete_run(run.info.run_id)
            run, points = self._claim(snapshot), {}
        self._describe(run, snapshot)
        return _There(run.info.run_id, set(points))

    def _points(self, run: Run) -> dict[tuple[str, int], list[float]]:
        points = defaultdict(list)
        for key in run.data.metrics:
            for point in self.client.get_metric_history(run.info.run_id, key):
                points[key, point.step].append(point.value)
        return points

    def _describe(self, run: Run, snapshot: Snapshot) -> None:
        run_id = run.info.run_id
        params = [Param(k, str(v)) for k, v in _flat(snapshot.config).items() if v is not None]
        for first in range(0, len(params), _PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=params[first : first + _PARAMS_PER_CALL])
        tags = [RunTag(key, value) for key, value in _tags(snapshot).items()]
        self.client.log_batch(run_id, tags=tags)
        if not run.inputs or not run.inputs.dataset_inputs:
            self.client.log_inputs(run_id, datasets=[DatasetInput(_dataset(snapshot))])

    def _send_points(self, there: _There, snapshot: Snapshot) -> None:
        points = [p for p in snapshot.points() if (p.key, p.epoch) not in there.points]
        for first in range(0, len(points), _POINTS_PER_CALL):
            batch = points[first : first + _POINTS_PER_CALL]
            metrics = [Metric(p.key, p.value, p.timestamp, p.epoch) for p in batch]
            self.client.log_batch(there.run_id, metrics=metrics)
        there.points.update((p.key, p.epoch) for p in points)

    def _find(self, dataset: str, condition: str) -> list[Run]:
        return list(self.client.search_runs([self._experiment(dataset)], condition))

    def _experiment(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        if known is not None:
            if name != REPORTS and known.tags.get(_VIEW) != COMPARISON:
                self._offer_comparison(known.experiment_id)
            return known.experiment_id
        location = f"{self._artifacts}/{name}" if self._artifacts else None
        try:
            created = self.client.create_experiment(name, artifact_location=location)
            if name != REPORTS:
                self._offer_comparison(created)
            return created
        except MlflowException:  # another mirror was first
            known = self.client.get_experiment_by_name(name)
            if known is None:
                raise
            return known.experiment_id

    def _offer_comparison(self, experiment: str) -> None:
        """Store the table's columns with an experiment, and a link to them in its description."""
        self.client.set_experiment_tag(experiment, _VIEW, COMPARISON)
        note = f"[Compare runs by method, bits and seed]({comparison_path(experiment)})"
        self.client.set_experiment_tag(experiment, "mlflow.note.content", note)


def comparisons(client: MlflowClient) -> list[tuple[str, str]]:
    """Return the experiments whose runs can be compared, each with its :func:`comparison_path`."""
    return [
        (experiment.name, comparison_path(experiment.experiment_id))
        for experiment in client.search_experiments()
        if _VIEW in experiment.tags
    ]


def comparison_path(experiment: str) -> str:
    """Return the path, on MLflow's server, of an experiment's runs with the columns to compare."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={_VIEW_KEY}"


def _up_to_date(run: Run, snapshot: Snapshot) -> bool:
    there = (run.data.tags.get(_CONTENT), run.info.status)
    return there == (snapshot.digest(), _STATES[snapshot.state])


def _agree(points: dict[tuple[str, int], list[float]], snapshot: Snapshot) -> bool:
    """Return whether MLflow's points are the folder's, which may lack the last ones on resuming."""
    expected = {(p.key, p.epoch): p.value for p in snapshot.points()}
    last = float("inf") if snapshot.state == "done" else snapshot.last_epoch
    return all(
        len(values) == 1 and _same(values[0], expected[key, epoch])
        if (key, epoch) in expected
        else epoch > last
        for (key, epoch), values in points.items()
    )


def _same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)


def _dataset(snapshot: Snapshot) -> Dataset:
    name, data = snapshot.config["dataset"], snapshot.provenance["data"]
    digest = data["fingerprint"].removeprefix("sha256:")[:_DIGEST]
    return Dataset(name, digest, "ofq", name)


def _tags(snapshot: Snapshot) -> dict[str, str]:
    config, provenance = snapshot.config, snapshot.provenance
    commit = provenance["attempts"][-1]["commit"]
    tags = {
        _ID: snapshot.id,
        "mlflow.runName": snapshot.id.rpartition("/")[2],
        "mlflow.source.git.commit": commit,
        "study": ",".join(provenance["studies"]),
        "method": ",".join(provenance["methods"]),
        "bits": config["quantization"]["bits"] if config["quantization"] else "FP",
        "model": config["model"],
        "seed": config["seed"],
        "stage": config["stage"],
        "parent": snapshot.description["parent"],
        "commit": commit,
        "nonfinite": snapshot.nonfinite() or None,
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    # MLflow allows few characters in a name; patterns of layers contain others
    return {re.sub(r"[^\w\-./ ]", "_", name): v for name, v in flat.items()}
