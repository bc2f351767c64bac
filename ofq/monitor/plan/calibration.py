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
from typing import TYPE_CHECKING, Any

from ofq import hardware
from ofq.config import Run, TrainedRun, Workspace
from ofq.config.run import CgaRun, QatRun
from ofq.config.stage import split
from ofq.errors import UserError
from ofq.hardware import processor
from ofq.monitor.kind import kind_of
from ofq.monitor.plan.samples import FILE, Calibration, calibrations
from ofq.runs.gpu_leases import lease
from ofq.starting import started
from ofq.stopping import Interrupted, StopRequest

if TYPE_CHECKING:
    from ofq.training.distributed import Devices

_WARM_UP = 3  # steps that come before the measured ones
_STEPS = 12  # that are measured at least
_SECONDS = 5.0  # for which steps are measured at least
_STRETCHES = 3
_PACKAGES = ("ofq", "torch", "timm")


class _Stopwatch:
    """Observer that times the steps of a training, and stops it after enough of them.

    Args:
        stop: The request by which it stops the training.
        wait: Waits until the device has done what it was given, since steps return before.
    """

    def __init__(self, stop: StopRequest, wait: Callable[[], None]) -> None:
        self.stop = stop
        self.wait = wait
        self.seconds: list[float] = []
        self._mark = 0.0

    def begin(self, done: int | None, total: int, recorded: int) -> None:
        """Ignore the beginning: no measurement is resumed."""

    def step(self, step: int) -> None:
        """Record a step's time."""
        self.wait()
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

    A run that asks for several GPUs is measured on one, with its share of the batch.

    Raises:
        UserError: The runs ask for GPUs, which this machine hasn't or torch can't use, or this is
            an unpacked bundle.
    """
    workspace.refuse_bundle("measure runs")
    workspace.results.mkdir(parents=True, exist_ok=True)
    versions = {name: metadata.version(name) for name in _PACKAGES}
    known = [
        c.kind
        for c in calibrations(workspace.results)
        if c.device in (processor(), *hardware.gpus()) and c.versions == versions
    ]
    wanted = {kind_of(run): run for run in runs if isinstance(run.config, TrainedRun)}
    missing = {kind: run for kind, run in wanted.items() if kind not in known}
    if any(kind.gpus for kind in missing):
        if not hardware.gpus():
            raise UserError(
                "--measure: runs of this study ask for GPUs, and this machine has none; "
                "measure on one that has, or give --device NAME"
            )
        lease(1, "ofq plan --measure")  # before CUDA starts; ends with this process
    imports = _import_torch() if missing else 0.0
    started()  # as before a training
    added = []
    for kind, run in missing.items():
        tell(f"measuring {kind.stage} of {kind.model} at {kind.bits}, {kind.method}")
        measured = _calibrate(workspace, run)
        measured["startup_seconds"] += imports
        line = Calibration(
            kind=kind,
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
    """Train a run's kind for some seconds, from fresh weights; return its times and its device."""
    from ofq.runs.inputs import array_place
    from ofq.training.build import Inputs, build
    from ofq.training.checkpoint import CheckpointStore
    from ofq.training.data.images import files_of
    from ofq.training.distributed import take_part
    from ofq.training.trainer import Session

    count, resources = max(1, run.resources.gpu), run.resources
    devices = _devices(min(1, resources.gpu))
    group = take_part(devices, max(1, resources.threads // count))
    stop = StopRequest()
    watch = _Stopwatch(stop, _waiting(devices))
    began = time.perf_counter()
    config = _share(run)
    with tempfile.TemporaryDirectory() as folder, suppress(Interrupted):
        store, files = CheckpointStore(Path(folder)), files_of(workspace, run)
        teacher_logits = Path(folder) / "teacher_logits.npy"
        session = Session(observer=watch, checkpoints=store, stop=stop, group=group)
        inputs = Inputs(teacher_logits=teacher_logits, data=array_place(workspace, config))
        trainer = build(
            config,
            inputs,
            session,
            files=files,
            device_batch=resources.device_batch,
            compiled=resources.compile,
        )
        startup = time.perf_counter() - began
        trainer.run()
    return {
        "device": devices.describe()["devices"][0],
        "step_seconds": _stretches(watch.seconds),
        "steps_per_epoch": trainer.data.steps_per_epoch(count * config.training.batch_size),
        "evaluation_seconds": trainer.pace.seconds["evaluation"] / count,
        "startup_seconds": startup,
    }


def _devices(gpus: int) -> "Devices":
    """Return the one device that is measured on.

    Raises:
        UserError: It is a GPU that torch can't use.
    """
    from ofq.training.distributed import choose

    devices = choose(gpus)
    if gpus and devices.kind == "cpu":
        raise UserError(
            "--measure: torch can't use this machine's GPU; "
            "`python -c 'import torch; torch.cuda.init()'` says why"
        )
    return devices


def _waiting(devices: "Devices") -> Callable[[], None]:
    if devices.kind == "cpu":
        return lambda: None
    return importlib.import_module("torch").cuda.synchronize


def _share(run: Run) -> TrainedRun:
    """Return the config of what one of a run's devices does, from fresh weights.

    Raises:
        UserError: The batch can't be split over the run's devices.
    """
    config = run.config
    assert isinstance(config, TrainedRun)
    if isinstance(config, QatRun):
        config = replace(config, pretrained=None)
    elif isinstance(config, CgaRun):
        config = config.from_fresh_weights()
    training, devices = config.training, max(1, run.resources.gpu)
    parts = split(training.batch_size, devices, run.resources.device_batch)
    share = training.model_copy(update={"batch_size": parts.passes * parts.images})
    return replace(config, training=share)


def _stretches(seconds: list[float]) -> tuple[float, ...]:
    """Return mean step times of equal stretches, without warm-up steps where there are others."""
    steady = seconds[_WARM_UP:] or seconds
    count = min(_STRETCHES, len(steady))
    ends = [len(steady) * n // count for n in range(count + 1)]
    return tuple(fmean(steady[begin:end]) for begin, end in pairwise(ends))
