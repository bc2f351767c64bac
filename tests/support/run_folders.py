"""Run folders as trainers write them, and what MLflow holds of them."""

import json
import time
from contextlib import suppress

from ofq.runs.folder import RunFolder
from ofq.runs.lock import RunLock

CONFIG = {
    "dataset": "digits", "model": "micro", "stage": "qat", "seed": 3, "parent": "12345678",
    "quantization": {"bits": "W2A2", "weight_quantizer": "statsq", "qkr": True}, "annealing": None,
    "training": {"lr": 0.001, "epochs": 4},
}  # fmt: skip
PROVENANCE = {
    "studies": ["digits", "ablation"],
    "methods": ["statsq+qkr"],
    "inputs": {"digits/micro/fp": "ab" * 32},
    "data": {"name": "digits", "fingerprint": "sha256:" + "cd" * 32, "images": 1797},
    "attempts": [{"number": 1, "started": 1.8e9, "commit": "abc", "diff": "", "host": "a"}],
}


class Training:
    """A run folder with its trainer, which appends what it is told to.

    Args:
        root: The results folder.
        name: The last part of the run's id.
        epochs: How many its config says.
    """

    def __init__(self, root, name="w2a2", epochs=4, config=CONFIG):
        self.id = f"digits/micro/{name}"
        self.folder = RunFolder(root / "runs" / self.id)
        config = config | {"training": {"lr": 0.001, "epochs": epochs}}
        self.folder.open({"id": self.id, "config": config, "parent": "digits/micro/fp"})
        (self.folder.path / "provenance.json").write_text(json.dumps(PROVENANCE))
        self.begin("started")

    def begin(self, kind="resumed"):
        self.lock = RunLock(self.folder.path)
        self.lock.acquire()
        self.folder.event("opened")
        self.folder.event(kind)

    def train(self, *epochs, later=0.0, **measures):
        self.folder.append("metrics", [row(e, later, **measures) for e in epochs])

    def stop(self, kind=None, **facts):
        if kind:
            self.folder.event(kind, **facts)
        self.lock.release()

    def finish(self):
        self.folder.event("finished")
        self.folder.finish({"top1": 84.0}, lambda path: path.write_bytes(b"weights"))
        self.lock.remove()


def row(epoch, later=0.0, **measures):
    metrics = {"loss": 1 / (epoch + 3), "top1": 80.0 + epoch, "lr": 0.1}
    train = {"train_loss": None if epoch == 0 else 0.1 + epoch}
    stamp = {"epoch": epoch, "step": 10 * epoch, "time": 1.8e9 + epoch + later}
    return stamp | metrics | train | measures


def recorded(folder):
    """All numbers of a run folder, as (metric, epoch, value)."""
    return sorted(
        (key, row["epoch"], float(value))
        for row in folder.rows("metrics")
        for key, value in row.items()
        if key not in ("epoch", "step", "time") and value is not None
    )


def find(client, run_id, experiment="digits"):
    """All that MLflow has of a run, which may be several."""
    experiment = client.get_experiment_by_name(experiment)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], f"tags.`ofq.run` = '{run_id}'"))


def mirrored(client, folder):
    """The one run that MLflow has for a folder."""
    (found,) = find(client, folder.description()["id"])
    return found


def points(client, folder):
    """All points that MLflow has of a run, as (metric, epoch, value)."""
    run = mirrored(client, folder)
    return sorted(
        (key, point.step, point.value)
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    )


def artifacts(client, folder):
    """The names of a run's files in MLflow."""
    return {i.path for i in client.list_artifacts(mirrored(client, folder).info.run_id)}


def until(condition, seconds=120):
    """Wait until something holds, which may not even be there yet."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(ValueError, OSError):
            if condition():
                return
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
