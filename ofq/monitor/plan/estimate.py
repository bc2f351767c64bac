"""Estimates of run times as ranges, from the best available measurements or assumptions.

Measured ranges are widened by a factor, for the variation that few measurements don't show.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ofq.config import Run
from ofq.hardware import gpus, processor
from ofq.monitor.plan.assumptions import assumed_epoch
from ofq.monitor.plan.kind import Kind, kind_of_config, passes_of
from ofq.monitor.plan.samples import Sample
from ofq.monitor.plan.span import Range, hull

_ENOUGH = 3  # runs, whose times show their variation
_FEW_RUNS = 1.2
_CALIBRATION = 1.3  # a minute doesn't show what hours do, nor how jobs slow each other down
_SIMILAR = 1.6  # from the cheapest method to the dearest: see assumptions.QUANTIZED
_LIMIT = 60  # seconds in a recipe's minute


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
    """Estimator of run times.

    Only samples from this machine's hardware are used; if there are none, as on a login node, all
    are.

    Args:
        samples: All measurements.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        here = gpus()
        self._gpu = here[0] if here else None
        on_gpus = [s for s in samples if s.kind.gpus]
        on_processors = [s for s in samples if not s.kind.gpus]
        self._samples = [*_local(on_gpus, here), *_local(on_processors, [processor()])]
        self.devices = sorted({sample.device for sample in self._samples})
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
        epoch = assumed_epoch(kind, self._gpu)
        if epoch is not None:
            return Estimate(epoch * epochs, "assumed: FLOPs", measured=False)
        limit = Range(0, _LIMIT * run.resources.runtime)
        return Estimate(limit, "assumed: recipe's limit", measured=False)


def _local(samples: list[Sample], devices: list[str]) -> list[Sample]:
    return [sample for sample in samples if sample.device in devices] or samples


def _scaled(samples: list[Sample], epochs: int, factor: float, source: str) -> Estimate:
    times = [Range(s.fixed, s.fixed) + s.epoch * epochs for s in samples]
    return Estimate(hull(times).widened(factor), source, measured=True)
