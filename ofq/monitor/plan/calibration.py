"""Short measurements of training time: real steps of the real model, on real data."""

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from ofq.config import Run, TrainedRun, Workspace
from ofq.config.run import CgaRun, QatRun
from ofq.errors import UserError
from ofq.hardware import processor
from ofq.monitor.kind import kind_of
from ofq.monitor.plan.samples import FILE, Calibration, calibrations
from ofq.stopping import Interrupted, StopRequest

_WARM_UP = 3  # steps that come before the measured ones
_STEPS = 12  # that are measured at least
_SECONDS = 5.0  # for which steps are measured at least
_STRETCHES = 3
_PACKAGES = ("ofq", "torch", "timm")


class _Stopwatch:
    """Observer that times the steps of a training, and stops it after enough of them.

    Args:
        stop: The request by which it stops the training.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self.seconds: list[float] = []
        self._mark = 0.0

    def begin(self, done: int | None, total: int, recorded: int) -> None:
        """Ignore the beginning: no measurement is resumed."""

    def step(self, step: int) -> None:
        """Record a step's time."""
        now = time.perf_counter()
        self.seconds.append(now - self._mark)
        self._mark = now
        measured = self.seconds[_WARM_UP:]
        if len(measured) >= _STEPS and sum(measured) > _SECONDS:
            self.stop.cause = "the end of the measurement"

    def epoch(self, metrics: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        """Restart the clock after an evaluation, when the next step begins."""
        self._mark = time.perf_counter()

    def recorded(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Discard the rows."""

    def saved(self, step: int) -> None:
        """Restart the clock, since saving is no part of a step."""
        self._mark = time.perf_counter()

    def warn(self, text: str) -> None:
        """Discard the warning."""


def measure(
    workspace: Workspace, runs: Iterable[Run], tell: Callable[[str], None]
) -> list[Calibration]:
    """Measure each kind of run not yet measured on this machine and with these versions.

    Args:
        workspace: The checkout; the measurements are added to its results.
        runs: The runs whose kinds are measured; evaluations among them are skipped.
        tell: Called with a line for each measurement.

    Raises:
        UserError: The runs ask for GPUs, or this is an unpacked bundle.
    """
    workspace.refuse_bundle("measure runs")
    workspace.results.mkdir(parents=True, exist_ok=True)
    device, versions = processor(), {name: metadata.version(name) for name in _PACKAGES}
    known = [
        c.kind
        for c in calibrations(workspace.results)
        if c.device == device and c.versions == versions
    ]
    wanted = {kind_of(run): run for run in runs if isinstance(run.config, TrainedRun)}
    missing = {kind: run for kind, run in wanted.items() if kind not in known}
    if any(kind.gpus for kind in missing):
        raise UserError("--measure: runs on GPUs can't be measured yet; leave it out")
    imports = _import_torch() if missing else 0.0
    added = []
    for kind, run in missing.items():
        tell(f"measuring {kind.stage} of {kind.model} at {kind.bits}, {kind.method}")
        measured = _calibrate(workspace, run)
        measured["startup_seconds"] += imports
        line = Calibration(
            kind=kind,
            device=device,
            threads=run.resources.threads,
            versions=versions,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            **measured,
        )
        with (workspace.results / FILE).open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")
        added.append(line)
    return added


def _import_torch() -> float:
    """Import the training code; return the seconds, which every job needs."""
    began = time.perf_counter()
    importlib.import_module("ofq.training.build")
    return time.perf_counter() - began


def _calibrate(workspace: Workspace, run: Run) -> dict[str, Any]:
    """Train a run's kind for some seconds, from fresh weights; return its times."""
    from ofq.runs.inputs import array_place
    from ofq.training.build import Inputs, build
    from ofq.training.checkpoint import CheckpointStore
    from ofq.training.data.images import files_of
    from ofq.training.distributed import choose, take_part
    from ofq.training.trainer import Session

    take_part(choose(gpus=0), run.resources.threads)
    stop = StopRequest()
    watch = _Stopwatch(stop)
    began = time.perf_counter()
    config = run.config
    assert isinstance(config, TrainedRun)
    if isinstance(config, QatRun):
        config = replace(config, pretrained=None)
    elif isinstance(config, CgaRun):
        config = config.from_fresh_weights()
    with tempfile.TemporaryDirectory() as folder, suppress(Interrupted):
        store, files = CheckpointStore(Path(folder)), files_of(workspace, run)
        teacher_logits = Path(folder) / "teacher_logits.npy"
        compiled = run.resources.compile
        session = Session(observer=watch, checkpoints=store, stop=stop)
        inputs = Inputs(teacher_logits=teacher_logits, data=array_place(workspace, config))
        trainer = build(config, inputs, session, files=files, compiled=compiled)
        startup = time.perf_counter() - began
        trainer.run()
    return {
        "step_seconds": _stretches(watch.seconds),
        "steps_per_epoch": trainer.steps_per_epoch,
        "evaluation_seconds": trainer.pace.seconds["evaluation"],
        "startup_seconds": startup,
    }


def _stretches(seconds: list[float]) -> tuple[float, ...]:
    """Return mean step times of equal stretches, without warm-up steps where there are others."""
    steady = seconds[_WARM_UP:] or seconds
    count = min(_STRETCHES, len(steady))
    ends = [len(steady) * n // count for n in range(count + 1)]
    return tuple(fmean(steady[begin:end]) for begin, end in pairwise(ends))
