"""Plan of a study: finished runs, remaining runs, and their costs."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ofq import hardware
from ofq.config import Run, TrainedRun, Workspace
from ofq.errors import UserError
from ofq.monitor.cost import Cost, costs
from ofq.monitor.devices import DEVICES, Device, recognized
from ofq.monitor.estimate import LIMIT, LOADING, Estimate, Estimator
from ofq.monitor.kind import Kind, kind_of
from ofq.monitor.plan.samples import of_device, of_this_hardware, samples
from ofq.monitor.schedule import Task, critical_path, makespan
from ofq.monitor.span import Range, hull, total
from ofq.runs.attempt import run_folder
from ofq.runs.own_code import changed_runs, told
from ofq.runs.record import Damaged

GPUS, CORES = "gpu", "core"

_HOUR = 3600


@dataclass(frozen=True)
class Machine:
    """Hardware that a study's jobs share.

    Runs that request GPUs wait for GPUs alone, the others for cores.

    Attributes:
        gpus: Number of GPUs.
        cores: Number of CPU cores.
    """

    gpus: int
    cores: int

    @classmethod
    def given(cls, gpus: int | None, cores: int | None, runs: Iterable[Run]) -> "Machine":
        """Return a machine; sizes left out are this machine's, or as large as the runs need."""
        runs = list(runs)
        widest = max((run.resources.gpu for run in runs), default=0)
        threads = max((run.resources.threads for run in runs), default=1)
        return cls(
            max(len(hardware.gpus()), widest) if gpus is None else gpus,
            max(len(os.sched_getaffinity(0)), threads) if cores is None else cores,
        )


@dataclass(frozen=True)
class Row:
    """Runs of one model, at some bits, in one stage.

    Attributes:
        model, bits, stage: Their common settings.
        done: Number of finished runs.
        to_do: Number of remaining runs.
        each: Seconds that each remaining run takes; None if there is none.
        device_hours: GPU-hours that the remaining runs take together, or core-hours if they request
            no GPU.
        sources: Bases of the estimates.
    """

    model: str
    bits: str
    stage: str
    done: int
    to_do: int
    each: Range | None
    device_hours: Range
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Costs of a study.

    Attributes:
        study: Its name.
        machine: The machine that it runs on.
        rows: Its runs, grouped by model, bits and stage.
        unshared: Number of runs if each cell trained all of its stages by itself.
        saved: GPU-hours (``gpu``) and core-hours (``core``) that sharing stages saves.
        left: GPU-hours and core-hours of the remaining runs.
        wall: Seconds until all runs are finished.
        chain: Seconds of the longest chain of runs, on any number of devices.
        devices: Names of the hardware that was measured.
        costs: Costs of the study's kinds of QAT runs, as far as they were measured.
        measurable: Whether a calibration on this machine would improve the estimates.
        assumption: What the times rest on that weren't measured on GPUs; None if there are none.
    """

    study: str
    machine: Machine
    rows: tuple[Row, ...]
    unshared: int
    saved: Mapping[str, Range]
    left: Mapping[str, Range]
    wall: Range
    chain: Range
    devices: tuple[str, ...]
    costs: Mapping[Kind, Cost]
    measurable: bool
    assumption: str | None

    @property
    def done(self) -> int:
        """Number of finished runs."""
        return sum(row.done for row in self.rows)

    @property
    def to_do(self) -> int:
        """Number of remaining runs."""
        return sum(row.to_do for row in self.rows)


class Planner:
    """Planner of a study's runs.

    Args:
        workspace: The checkout of its config and results.
        study: Its name.
        device: The GPU to plan for; None for this machine's, or where it has none that is known,
            for the range over all known ones.

    Attributes:
        runs: Its runs by id, parents first.
        warnings: A line for each record that can't be read, and is therefore left out, and one on
            runs that were made by other code.
    """

    def __init__(self, workspace: Workspace, study: str, device: Device | None = None) -> None:
        self.study = study
        self.grid = workspace.grid(study)
        self.runs = self.grid.runs()
        models = {(run.config.dataset, run.config.model) for run in self.runs.values()}
        self.warnings: list[str] = []
        found = samples(workspace, models, self.warnings.append)
        measured = of_device(found, device) if device else of_this_hardware(found)
        self._devices = sorted({sample.device for sample in measured})
        self._gpu = device or next(filter(None, map(recognized, hardware.gpus())), None)
        if device and not any(run.resources.gpu for run in self.runs.values()):
            self.warnings.append(
                f"--device {device.name} changes nothing: no run of {study} asks for a GPU"
            )
        self.estimator = Estimator(measured, self._gpu)
        self._costs = costs(measured)
        self._estimates: dict[str, Estimate] = {}
        self._left = {name: self._share(workspace, run) for name, run in self.runs.items()}
        if changed := told(study, changed_runs(workspace, self.runs)):
            self.warnings.append(changed)

    def _share(self, workspace: Workspace, run: Run) -> float:
        """Return the remaining share of a run; 0 if it is complete, or damaged."""
        folder = run_folder(workspace, run)
        try:
            if folder.record() is not None:
                return 0.0
        except Damaged as damage:
            if f"left out: {damage}" not in self.warnings:
                self.warnings.append(str(damage))
            return 0.0
        try:
            progress = folder.progress()
        except Damaged as damage:
            self.warnings.append(str(damage))
            return 1.0
        done = progress["step"] / progress["total"] if progress.get("total") else 0.0
        return 1 - min(0.99, done)

    def estimate(self, run: Run) -> Estimate:
        """Estimate a run's time as a whole."""
        if run.id not in self._estimates:
            self._estimates[run.id] = self.estimator.estimate(run)
        return self._estimates[run.id]

    def to_do(self) -> list[Run]:
        """Return the runs that aren't complete, parents first."""
        return [run for name, run in self.runs.items() if self._left[name]]

    def unmeasured(self) -> list[Run]:
        """Return the remaining runs of whose kind none was measured."""
        return [run for run in self.to_do() if not self.estimator.knows(kind_of(run))]

    def plan(self, machine: Machine) -> Plan:
        """Plan the study on a machine.

        Raises:
            UserError: The machine is smaller than a run needs.
        """
        _check(machine, self.to_do())
        lows, highs = (self._tasks(high) for high in (False, True))
        capacity = {GPUS: machine.gpus, CORES: machine.cores}
        chains = [run for cell in self.grid.cells for last in cell.runs for run in last.chain()]
        alone, shared = self._hours(chains), self._hours(self.runs.values())
        saved = {
            pool: Range(alone[pool].low - shared[pool].low, alone[pool].high - shared[pool].high)
            for pool in alone
        }
        return Plan(
            study=self.study,
            machine=machine,
            rows=self._rows(),
            unshared=len(chains),
            saved=saved,
            left=self._hours(self.to_do(), left=True),
            wall=_ordered(makespan(lows, capacity), makespan(highs, capacity)),
            chain=Range(critical_path(lows), critical_path(highs)),
            devices=tuple(self._devices),
            costs={k: self._costs[k] for k in self._kinds() if k in self._costs},
            measurable=any(
                isinstance(run.config, TrainedRun)
                and (not run.resources.gpu or bool(hardware.gpus()))
                for run in self.unmeasured()
            ),
            assumption=self._assumption(),
        )

    def _kinds(self) -> list[Kind]:
        """Return the kinds of the study's runs once, in their order."""
        return list(dict.fromkeys(kind_of(run) for run in self.runs.values()))

    def _assumption(self) -> str | None:
        """Say what the assumed times of GPUs rest on; None if there are none."""
        assumed = [
            run
            for run in self.to_do()
            if self.estimate(run).source not in (LIMIT, LOADING) and not self.estimate(run).measured
        ]
        if not assumed:
            return None
        if self._gpu is None:
            names = ", ".join(device.name for device in DEVICES)
            return f"any of {names}; --device NAME narrows it to a factor of 3"
        kinds = sorted({kind_of(run).precision for run in assumed})
        peaks = ", ".join(f"{self._gpu.peak(kind) / 1e12:g} TFLOP/s in {kind}" for kind in kinds)
        return f"{self._gpu.name}, at most {peaks}, {self._gpu.bandwidth:g} TB/s"

    def _tasks(self, high: bool) -> list[Task]:
        present = {run.id for run in self.to_do()}
        tasks = []
        for run in self.to_do():
            seconds = self._seconds_left(run)
            pool, width = _demand(run)
            needs = tuple(need.id for need in run.needs() if need.id in present)
            time = seconds.high if high else seconds.low
            tasks.append(Task(run.id, time, pool, width, needs))
        return tasks

    def _seconds_left(self, run: Run) -> Range:
        return self.estimate(run).seconds * self._left[run.id]

    def _hours(self, runs: Iterable[Run], left: bool = False) -> dict[str, Range]:
        """Return GPU-hours and core-hours of some runs, as a whole or of what remains."""
        hours = {GPUS: Range(0, 0), CORES: Range(0, 0)}
        for run in runs:
            pool, width = _demand(run)
            seconds = self._seconds_left(run) if left else self.estimate(run).seconds
            hours[pool] += seconds * (width / _HOUR)
        return hours

    def _rows(self) -> tuple[Row, ...]:
        groups: dict[tuple[str, str, str], list[Run]] = {}
        for run in self.runs.values():
            config = run.config
            groups.setdefault((config.model, config.bits or "FP", config.stage), []).append(run)
        models = list(dict.fromkeys(model for model, *_ in groups))
        together = sorted(groups.items(), key=lambda group: models.index(group[0][0]))
        return tuple(self._row(key, runs) for key, runs in together)

    def _row(self, key: tuple[str, str, str], runs: list[Run]) -> Row:
        to_do = [run for run in runs if self._left[run.id]]
        estimates = [self.estimate(run) for run in to_do]
        return Row(
            *key,
            done=len(runs) - len(to_do),
            to_do=len(to_do),
            each=hull(estimate.seconds for estimate in estimates) if estimates else None,
            device_hours=total(self._hours(to_do, left=True).values()),
            sources=tuple(sorted({estimate.source for estimate in estimates})),
        )


def _demand(run: Run) -> tuple[str, int]:
    return (GPUS, run.resources.gpu) if run.resources.gpu else (CORES, run.resources.threads)


def _check(machine: Machine, runs: Sequence[Run]) -> None:
    for pool, present in ((GPUS, machine.gpus), (CORES, machine.cores)):
        most = max((w for run in runs for p, w in [_demand(run)] if p == pool), default=0)
        if most > present:
            raise UserError(
                f"--{pool}s {present}: a run of this study asks for {most}, by its recipe's "
                f"resources; give --{pool}s {most} or more"
            )


def _ordered(one: float, other: float) -> Range:
    """Return a range of two makespans; shorter jobs may have the longer one."""
    return Range(min(one, other), max(one, other))
