"""Measured run times: of finished runs, and of short calibrations."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ofq import hardware
from ofq.config import Workspace
from ofq.config.files import Strict, parse
from ofq.errors import UserError
from ofq.monitor.devices import Device, recognized
from ofq.monitor.estimate import Sample
from ofq.monitor.kind import Kind
from ofq.monitor.span import Range
from ofq.runs.record import DESCRIPTION, Damaged, Record

FILE = "throughput.jsonl"
"""File of the calibrations, in the results folder; one line each, so machines can share it."""


class Calibration(Strict):
    """Calibration of one kind of run: a line of the file.

    Attributes:
        kind: The kind that was measured.
        device: The hardware's name.
        threads: CPU threads.
        versions: Versions of the packages that computed it.
        date: Time of the measurement, in UTC.
        step_seconds: Mean times of a training step, in several stretches.
        steps_per_epoch: Steps of an epoch.
        evaluation_seconds: Seconds of one evaluation.
        startup_seconds: Seconds from the start of a job to its first step.
    """

    kind: Kind
    device: str
    threads: int
    versions: dict[str, str | None]
    date: str
    step_seconds: tuple[float, ...]
    steps_per_epoch: int
    evaluation_seconds: float
    startup_seconds: float

    def sample(self) -> Sample:
        """Return the sample of whole runs that follows from the calibration."""
        epochs = [s * self.steps_per_epoch + self.evaluation_seconds for s in self.step_seconds]
        fixed = self.startup_seconds + self.evaluation_seconds  # one evaluation precedes training
        return Sample(self.kind, self.device, "calibration", Range(min(epochs), max(epochs)), fixed)


def calibrations(results: Path) -> list[Calibration]:
    """Return all calibrations so far.

    Raises:
        UserError: A line of the file isn't a valid calibration.
    """
    path = results / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path}: not text ({error}); remove it, or put it back") from None
    return [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def samples(
    workspace: Workspace,
    models: Iterable[tuple[str, str]],
    warn: Callable[[str], None] = lambda text: None,
) -> list[Sample]:
    """Return all samples of some models.

    Args:
        workspace: The checkout whose results are read.
        models: Pairs of data set and model.
        warn: Called with a line for each damaged record, which is left out.
    """
    wanted = set(models)
    measured = [c.sample() for c in calibrations(workspace.results)]
    selection = [s for s in measured if (s.kind.dataset, s.kind.model) in wanted]
    for dataset, model in sorted(wanted):
        folder = workspace.results / "runs" / dataset / model
        selection += _finished(folder, warn) if folder.exists() else []
    return selection


def of_this_hardware(samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples of this machine's GPUs and processor.

    Where there are none of its GPUs, or none of its processor, as on a login node, all are kept.
    """
    samples = list(samples)
    on_gpus = [sample for sample in samples if sample.kind.gpus]
    on_processors = [sample for sample in samples if not sample.kind.gpus]
    return [*_local(on_gpus, hardware.gpus()), *_local(on_processors, [hardware.processor()])]


def of_device(samples: Iterable[Sample], device: Device) -> list[Sample]:
    """Return the samples of a named GPU, and those of processors."""
    return [each for each in samples if not each.kind.gpus or recognized(each.device) == device]


def _local(samples: list[Sample], devices: list[str]) -> list[Sample]:
    return [sample for sample in samples if sample.device in devices] or samples


def _finished(folder: Path, warn: Callable[[str], None]) -> Iterator[Sample]:
    for path in sorted(folder.iterdir()):
        try:
            record = Record.open(path) if path.is_dir() else None
            sample = None if record is None else _measured(record)
        except Damaged as damage:
            warn(f"left out: {damage}")
        else:
            if sample is not None:
                yield sample


def _measured(record: Record) -> Sample | None:
    """Return a finished run's sample; None if it has no time, or its devices aren't on record."""
    attempts = record.written_provenance()["attempts"] if record.seconds else []
    if not attempts:
        return None
    config = record.description()["config"]
    try:
        return Sample.of_run(config, record.seconds, attempts[-1])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(record.folder / DESCRIPTION, f"no config of a run ({error})") from None


def _parsed(line: str, source: str) -> Calibration:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({error}); remove the line") from None
    return parse(Calibration, data, source)
