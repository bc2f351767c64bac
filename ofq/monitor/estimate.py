"""Estimates of run times as ranges, from the best available measurements or assumptions.

Measured ranges are widened by a factor, for the variation that few measurements don't show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ofq.config import Run
from ofq.monitor import assumptions
from ofq.monitor.assumptions import assumed_epoch
from ofq.monitor.devices import Device
from ofq.monitor.kind import Kind, kind_of_config, passes_of
from ofq.monitor.span import Range, hull

LIMIT = "assumed: recipe's limit"
"""Source of times that nothing is known of."""

LOADING = f"assumed: {assumptions.LOADING}"
"""Source of times that no GPU decides."""

_ENOUGH = 3  # runs, whose times show their variation
_FEW_RUNS = 1.2
_CALIBRATION = 1.3  # a minute doesn't show what hours do, nor how jobs slow each other down
_SIMILAR = 1.6  # from the cheapest method to the dearest: see assumptions.WORK
_LIMIT = 60  # seconds in a recipe's minute


@dataclass(frozen=True)
class Sample:
    """Measured times of one kind of run.

    Attributes:
        kind: Their kind.
        device: The hardware's name.
        source: Its origin: a run, finished or running, or a calibration.
        epoch: Seconds per epoch, its evaluation included.
        fixed: Seconds of an attempt outside its epochs.
    """

    kind: Kind
    device: str
    source: Literal["run", "calibration"]
    epoch: Range
    fixed: float = 0.0

    @classmethod
    def of_run(
        cls, config: Mapping[str, Any], seconds: float | None, attempt: Mapping[str, Any]
    ) -> "Sample | None":
        """Return a finished run's sample; None if it has no time, or its devices aren't on record.

        Args:
            config: Its config as in ``run.json``.
            seconds: Its seconds over all attempts.
            attempt: Its last attempt in ``provenance.json``.
        """
        devices = attempt.get("devices")
        if not seconds or not devices:
            return None
        kind = kind_of_config(config, len(devices) if attempt.get("cuda") else 0)
        epoch = seconds / passes_of(config)
        return cls(kind, devices[0], "run", Range(epoch, epoch))


@dataclass(frozen=True)
class Estimate:
    """Estimated time of a run.

    Attributes:
        seconds: The time.
        source: Its basis.
        measured: Whether it is based on measurements.
    """

    seconds: Range
    source: str
    measured: bool


class Estimator:
    """Estimator of run times, for `ofq status` and `ofq plan` alike.

    Args:
        samples: The measurements that it rests on.
        gpu: The GPU for which runs are assumed to take a time where none was measured; None for
            the range over all known ones.
    """

    def __init__(self, samples: Sequence[Sample], gpu: Device | None = None) -> None:
        self._gpu = gpu
        self._samples = list(samples)
        self._known: dict[Kind, list[Sample]] = {}
        for sample in self._samples:
            self._known.setdefault(sample.kind, []).append(sample)

    def knows(self, kind: Kind) -> bool:
        """Return whether runs of exactly this kind were measured."""
        return kind in self._known

    def estimate(self, run: Run) -> Estimate:
        """Estimate a run's time from its start to its end."""
        config = run.config.payload()
        kind, epochs = kind_of_config(config, run.resources.gpu), passes_of(config)
        same = self._known.get(kind, [])
        finished = [sample for sample in same if sample.source == "run"]
        if finished:
            factor = 1.0 if len(finished) >= _ENOUGH else _FEW_RUNS
            noun = "run" if len(finished) == 1 else "runs"
            return _scaled(finished, epochs, factor, f"{len(finished)} {noun}")
        if same:
            return _scaled(same, epochs, _CALIBRATION, "calibration")
        similar = [sample for sample in self._samples if sample.kind.resembles(kind)]
        if similar:
            return _scaled(similar, epochs, _SIMILAR, "similar runs")
        assumed = assumed_epoch(kind, run.resources, self._gpu)
        if assumed is not None:
            seconds = assumed.seconds * epochs
            return Estimate(seconds, f"assumed: {assumed.basis}", measured=False)
        limit = Range(0, _LIMIT * run.resources.runtime)
        return Estimate(limit, LIMIT, measured=False)


def _scaled(samples: list[Sample], epochs: int, factor: float, source: str) -> Estimate:
    times = [Range(s.fixed, s.fixed) + s.epoch * epochs for s in samples]
    return Estimate(hull(times).widened(factor), source, measured=True)
