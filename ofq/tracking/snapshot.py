"""Snapshot of the part of a run folder that is mirrored."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from ofq.config.fields import State
from ofq.errors import some
from ofq.runs.folder import RunFolder
from ofq.runs.record import Damaged

POINTS = 300
"""Approximate most points per metric; of longer runs some epochs are sent, evenly spaced."""

_NOT_METRICS = {"epoch", "step", "time"}


@dataclass(frozen=True)
class Point:
    """One value of one metric.

    Attributes:
        key: The metric.
        epoch: The epoch after which it was measured.
        value: The value; NaN for any number that isn't finite.
        timestamp: Time of its recording, in milliseconds since the Unix epoch.
    """

    key: str
    epoch: int
    value: float
    timestamp: int


@dataclass(frozen=True)
class Snapshot:
    """Content of a run folder at one moment.

    Attributes:
        description: Content of ``run.json``.
        provenance: Content of ``provenance.json``.
        state: State of the run.
        events: Content of ``events.jsonl``.
        rows: Rows of the table ``metrics``.
    """

    description: dict[str, Any]
    provenance: dict[str, Any]
    state: State
    events: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    @classmethod
    def take(cls, folder: RunFolder) -> "Snapshot | None":
        """Read a run folder; None if it has no events yet.

        Raises:
            UserError: It isn't a run folder, or its record is damaged.
        """
        state = folder.state()  # first, so that rows read later aren't taken for the final ones
        description, events = folder.description(), folder.events()
        if not events:
            return None
        rows = folder.final_rows("metrics") if state == "done" else folder.rows("metrics")
        for number, row in enumerate(rows, 1):
            if not _is_measured(row):
                path = folder.path / "metrics.jsonl"
                raise Damaged(path, f"row {number} isn't one of measures after an epoch")
        return cls(description, folder.provenance(), state, events, rows)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.description["id"]

    @property
    def config(self) -> dict[str, Any]:
        """The run's resolved config."""
        return self.description["config"]

    @property
    def started(self) -> int:
        """Start of the run, in milliseconds; identifies the training."""
        return int(1000 * self.events[0]["time"])

    @property
    def ended(self) -> int:
        """Time of the last event or epoch, in milliseconds."""
        return int(1000 * max(entry["time"] for entry in [*self.events, *self.rows[-1:]]))

    @property
    def last_epoch(self) -> int:
        """Last epoch on record; -1 if there is none."""
        return max((row["epoch"] for row in self.rows), default=-1)

    def digest(self) -> str:
        """Return the SHA-256 of the whole content."""
        parts = [self.description, self.provenance, self.state, self.events, self.rows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def points(self) -> list[Point]:
        """Return the metrics of evenly spaced epochs, including the run's first and last.

        The choice of epochs depends on the run's length alone, so it is stable as the run grows.
        """
        training = self.config["training"]
        last = training["epochs"] if training else 0
        stride = math.ceil(max(last, 1) / POINTS)
        return [
            Point(key, row["epoch"], float(value), int(1000 * row["time"]))
            if math.isfinite(value)
            else Point(key, row["epoch"], math.nan, int(1000 * row["time"]))
            for row in self.rows
            if row["epoch"] % stride == 0 or row["epoch"] == last
            for key, value in _metrics(row)
        ]

    def nonfinite(self) -> str:
        """List the values that aren't finite: MLflow has no infinity, so all are NaN there."""
        return some(
            [
                f"{key} is {value} after epoch {row['epoch']}"
                for row in self.rows
                for key, value in _metrics(row)
                if not math.isfinite(value)
            ]
        )


def _is_measured(row: dict[str, Any]) -> bool:
    """Return whether a row has an epoch, a time and only numbers."""
    numbers = all(value is None or type(value) in (int, float) for value in row.values())
    return numbers and type(row.get("epoch")) is int and row.get("time") is not None


def _metrics(row: dict[str, Any]) -> list[tuple[str, float]]:
    return [(k, v) for k, v in row.items() if k not in _NOT_METRICS and v is not None]
