"""Training loop of a stage, from a calibrated model or a checkpoint to the last epoch."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ofq.config import ProbeConfig, Training
from ofq.console import printable
from ofq.errors import UserError
from ofq.models.compiling import compile_blocks, uncompiled
from ofq.quantization import Oscillation, OscillationTracker, Technique, combine
from ofq.stopping import Interrupted, StopRequest
from ofq.training.checkpoint import CheckpointStore, NoCheckpoints
from ofq.training.checks import (
    BadNumbers,
    LossWatch,
    first_bad_output,
    first_bad_parameter,
    zero_variance,
)
from ofq.training.compile import interruptible
from ofq.training.data.source import Batch, Source, until
from ofq.training.distributed import SINGLE_PROCESS, SingleProcess, gradients, statistics
from ofq.training.graphs import Graph, capturing
from ofq.training.objective import Objective
from ofq.training.optimization import make_optimizer, make_schedule
from ofq.training.pace import Pace, Part
from ofq.training.precision import casting, loss_scaler
from ofq.training.probes import Probes, Table, measures


class Observer(Protocol):
    """Receiver of training's reports; the only interface to records and progress bars."""

    def begin(self, done: int | None, total: int, recorded: int) -> None:
        """Report that training starts or resumes; records after ``recorded`` are void.

        Args:
            done: Number of steps done; None at the start of the run.
            total: Number of steps of the whole run.
            recorded: Step of the last epoch that was reported before the checkpoint; -1 for none.
        """

    def step(self, step: int) -> None:
        """Report an optimizer step."""

    def epoch(self, metrics: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        """Report the end of an epoch; epoch 0 is the state before the first step."""

    def recorded(self, table: Table, rows: list[dict[str, Any]]) -> None:
        """Report the rows that probes recorded over an epoch for a table."""

    def saved(self, step: int) -> None:
        """Report that a checkpoint was saved."""

    def warn(self, text: str) -> None:
        """Report a fault that training survives."""


class Silence:
    """Observer that ignores all reports, for ranks 1 to N - 1."""

    def begin(self, done: int | None, total: int, recorded: int) -> None:
        """Ignore the start of training."""

    def step(self, step: int) -> None:
        """Ignore a step."""

    def epoch(self, metrics: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        """Ignore an epoch."""

    def recorded(self, table: Table, rows: list[dict[str, Any]]) -> None:
        """Ignore rows of probes."""

    def saved(self, step: int) -> None:
        """Ignore a checkpoint."""

    def warn(self, text: str) -> None:
        """Ignore a warning."""


@dataclass
class Session:
    """Environment of a training.

    Attributes:
        observer: Receiver of its reports.
        checkpoints: Store of its state, from which it resumes.
        stop: Stop request, checked after every step.
        pace: Decides when to save and when to stop for the time limit.
        group: Process group of the run.
    """

    observer: Observer = field(default_factory=Silence)
    checkpoints: CheckpointStore = field(default_factory=NoCheckpoints)
    stop: StopRequest = field(default_factory=StopRequest)
    pace: Pace = field(default_factory=Pace)
    group: SingleProcess = SINGLE_PROCESS


class Trainer:
    """Training of one model for one stage, on one rank or several.

    All ranks hold the same weights and run the same steps, each on its part of every batch. They
    exchange between two steps what only one of them knows, such as a signal that it received.

    Args:
        model: The model, on the rank's device; a quantized one is calibrated.
        data: The data set.
        objective: The training loss and the measures.
        techniques: Techniques against oscillation, applied around each step in this order.
        training: The stage's hyperparameters.
        session: Observer, checkpoints, stop request, pace and process group.
        scale_lr: Factor on the learning rate of learned weight scales.
        passes: Number of forward and backward passes that a rank's part of a batch is split into.
        compiled: Whether the model's blocks, techniques and the tracker are compiled.
        tracked: Whether oscillation is tracked.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Source,
        objective: Objective,
        techniques: Sequence[Technique],
        training: Training,
        session: Session,
        *,
        scale_lr: float = 1.0,
        passes: int = 1,
        compiled: bool = False,
        tracked: bool = True,
    ) -> None:
        self.model = model
        self.data = data
        self.objective = objective
        self.techniques = techniques
        self.training = training
        self.observer = session.observer
        self.checkpoints = session.checkpoints
        self.stop = session.stop
        self.pace = session.pace
        self.group = session.group
        self.passes = passes
        self.tracker = (
            OscillationTracker(model, compiled=compiled, required=False) if tracked else None
        )
        self.optimizer = make_optimizer(model, training, scale_lr)
        for technique in techniques:
            technique.attach(self.optimizer)
        self.scaler = loss_scaler(training.precision, self.group.device)
        self.schedule = make_schedule(self.optimizer, training)
        if compiled:
            compile_blocks(model, self.group.device)
            for technique in techniques:
                technique.compile()
        self.steps_per_epoch = data.steps_per_epoch(training.batch_size)
        self.probes = self._make_probes(training.probes)
        self.total_steps = training.epochs * self.steps_per_epoch
        self.step = 0
        self.evaluated = -1  # the last epoch that was evaluated and reported
        self.loss_sum = torch.zeros((), device=self.group.device)
        self.watch = LossWatch(self.group.device)
        self.metrics: dict[str, Any] = {}
        self.correct: NDArray[np.bool_] | None = None  # of the last evaluation

    def train_step(self, batch: Batch) -> None:
        """Make one optimizer step on this rank's part of a batch.

        Doesn't wait for the device.
        """
        progress = self.step / self.total_steps
        teacher = self.objective.teacher
        if teacher is not None:
            logits = [teacher.logits(part.inputs) for part in batch.chunk(self.passes)]
            batch = batch._replace(teacher_logits=torch.cat(logits))
        loss = self._forward_backward(batch, progress)
        # parts have equal weight; the loss is reduced too, so that all ranks judge it alike
        self.group.all_reduce_mean([loss, *gradients(self.model), *statistics(self.model)])
        self.probes.before_step(self.step + 1)
        self._update(progress)
        self.step += 1
        self.probes.after_step(self.step)
        self.loss_sum += loss
        self.watch.observe(loss, self.step)

    def _forward_backward(self, batch: Batch, progress: float) -> Tensor:
        """Compute the gradients of the mean loss over this rank's part; return that loss."""
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=self.group.device)
        for inputs, labels, teacher_logits in batch.chunk(self.passes):
            with casting(self.training.precision, self.group.device):
                outputs = self.model(inputs)
            loss = self.objective.loss(outputs, labels, teacher_logits)
            penalty = sum(technique.penalty(progress) for technique in self.techniques)
            self.scaler.scale((loss + penalty) / self.passes).backward()
            mean += loss.detach() / self.passes
        return mean

    def _update(self, progress: float) -> None:
        """Step the optimizer under the techniques, and track the oscillation of the new codes."""
        for technique in self.techniques:
            technique.before_step(progress)
        self.scaler.step(self.optimizer)
        for technique in self.techniques:
            technique.after_step(progress)
        self.scaler.update()
        if self.tracker is not None:
            self.tracker.update()

    def _renew(self) -> None:
        """Prepare for changed learning rates or loaded state; does nothing here."""

    def run(self) -> dict[str, Any]:
        """Train to the end, from the newest checkpoint if there is one.

        Returns:
            The last epoch's metrics.

        Raises:
            Interrupted: A stop was requested, or the time limit reached; the state is saved.
            TryAgain: A compiler was killed (:func:`ofq.training.compile.interruptible`).
            BadNumbers: The numbers are invalid; the last checkpoint is from before that.
        """
        resumed = self.group.broadcast_object(self.checkpoints.load())
        if resumed is not None:
            self._restore(resumed)
        recorded = self.evaluated * self.steps_per_epoch if self.evaluated >= 0 else -1
        self.observer.begin(None if resumed is None else self.step, self.total_steps, recorded)
        for kind in self.probes.left_out:
            self.observer.warn(
                f"flips of activations that {kind} quantizes aren't recorded: it has no codes(x)"
            )
        if resumed is None:
            self._save()
        for epoch in range(self.evaluated + 1, self.training.epochs + 1):
            for batch in self._batches(epoch):
                with self.pace.measure("step"), interruptible(self.stop):
                    self.train_step(batch)
                self.observer.step(self.step)
                self._save_or_stop(
                    "step" if self.step < epoch * self.steps_per_epoch else "evaluation"
                )
            self._finish_epoch(epoch)
        return self.metrics

    def final_model(self) -> nn.Module:
        """Return the model that evaluation sees; a technique may derive it from the trained one."""
        model = self.model
        for technique in self.techniques:
            model = technique.evaluated(model)
        return model

    def _make_probes(self, settings: ProbeConfig) -> Probes:
        """Make the stage's probes; activations are followed on the first epoch's first images.

        They are the same on all ranks, and whenever the run resumes.
        """
        images = None
        if settings.activations:
            first = next(self.data.train_batches(0, self.training.batch_size)).inputs
            images = first[: settings.activations]
        return Probes(
            self.model,
            settings,
            self.training.epochs,
            self.steps_per_epoch,
            images=images,
            precision=self.training.precision,
        )

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the remaining batches of an epoch; epochs count from 1, and epoch 0 has none."""
        if epoch:
            self.model.train()
            self.schedule.step(epoch - 1)
            self._renew()
            first = self.step - (epoch - 1) * self.steps_per_epoch
            batch_size = self.training.batch_size
            yield from self.data.train_batches(epoch - 1, batch_size, first, self.group)

    def _finish_epoch(self, epoch: int) -> None:
        """Evaluate and report after an epoch; for epoch 0, the model before the first step."""
        self._check_numbers()
        try:
            precise = casting(self.training.precision, self.group.device)
            with self.pace.measure("evaluation"), uncompiled(), precise:
                self._prepare_evaluation(epoch)
                batches = self.data.test_batches(group=self.group)
                evaluation = self.objective.evaluate(
                    self.final_model(), until(self.stop, batches, self.group), self.group
                )
        except Interrupted:
            self._save()
            raise
        train_loss = float(self.loss_sum) / self.steps_per_epoch if epoch else None
        self.loss_sum.zero_()
        self.correct = evaluation.correct
        parts = self.tracker.summary() if self.tracker else []
        recorded = self.probes.take(epoch, self.step)
        self.metrics = {
            "epoch": epoch,
            "step": self.step,
            "time": time.time(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            **evaluation.measures,
            **_by_role(parts),
            **measures(recorded.get("activations", [])),
        }
        for technique in self.techniques:
            self.metrics |= technique.metrics()
        stamp = {"epoch": epoch, "step": self.step}
        for table, rows in recorded.items():
            self.observer.recorded(table, rows)
        self.observer.epoch(self.metrics, [{**stamp, **asdict(part)} for part in parts])
        self.evaluated = epoch
        if epoch < self.training.epochs:
            self._save_or_stop("step")

    def _prepare_evaluation(self, epoch: int) -> None:
        """Call the techniques' hooks before an evaluation, with batches of the next epoch's order.

        Statistics that a technique estimates on each rank's part are then averaged over the ranks.
        """
        for technique in self.techniques:
            batches = self.data.train_batches(
                epoch, self.training.batch_size, first=0, group=self.group
            )
            parts = (
                part.inputs
                for batch in until(self.stop, batches, self.group)
                for part in batch.chunk(self.passes)
            )
            technique.before_evaluation(parts)
        if averages := [*statistics(self.model)]:
            self.group.all_reduce_mean(averages)

    def _save_or_stop(self, coming: Part) -> None:
        """Save if a checkpoint is due, and stop if requested or out of time, on all ranks alike."""
        cause = self.stop.cause
        if cause is None and not self.pace.fits(coming):
            cause = "the time limit"
        due = self.stop.checkpoint or self.pace.save_due()
        cause, due = self.group.agree(cause, due)
        if cause is not None:
            self._save()
            raise Interrupted(cause)
        if due:
            try:
                self._save()
            except OSError as error:
                self.observer.warn(f"no checkpoint at step {self.step}: {error}; training goes on")
                self.pace.postpone()

    def _check_numbers(self) -> None:
        """Raise :class:`BadNumbers` for invalid losses or weights; waits for the device."""
        step = self.watch.first_bad_step()
        if step is not None:
            raise self._diagnosis(step)
        fault = first_bad_parameter(self.model) or zero_variance(self.model)
        if fault is not None:
            raise BadNumbers(self.step, *fault)

    def _diagnosis(self, step: int) -> BadNumbers:
        """Return the cause of a step's bad loss, found by repeating it from the last checkpoint.

        The current weights show no cause, since the bad loss has made all of them invalid.
        """
        good = self.group.broadcast_object(self.checkpoints.load())
        unknown = BadNumbers(step, "", "the loss isn't finite")
        if good is None:
            return unknown
        self._restore(good)
        epoch = self.evaluated + 1
        while True:
            for batch in self._batches(epoch):
                if self.step == step - 1:
                    fault = first_bad_parameter(self.model) or first_bad_output(
                        self.model, batch.inputs
                    )
                    first = next(filter(None, self.group.all_gather_object(fault)), None)
                    return BadNumbers(step, *first) if first else unknown
                if self.group.agree(self.stop.cause, save=False)[0] is not None:
                    return unknown
                self.train_step(batch)
            epoch += 1

    def _save(self) -> None:
        self._check_numbers()
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "techniques": [technique.state_dict() for technique in self.techniques],
            "tracker": self.tracker.state_dict() if self.tracker else {},
            "loss_sum": self.loss_sum,
            "metrics": self.metrics,
            "recordings": {
                "settings": self.probes.settings.model_dump(),
                "state": self.probes.state_dict(),
            },
            "rng": self.group.all_gather_object(_rng_state(self.group.device)),
            "seconds": self.pace.seconds,
        }
        try:
            with self.pace.measure("save"):
                self.checkpoints.save(self.step, state)
        finally:  # a scheduler may end all ranks once one has ended
            self.group.barrier()
        self.stop.checkpoint = False
        self.observer.saved(self.step)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self._take_over(state)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = printable(str(error).partition("\n")[0])
            raise UserError(
                f"{self.checkpoints.folder}: its checkpoint isn't one of this training "
                f"({type(error).__name__}: {reason}); remove the folder to begin anew"
            ) from None

    def _take_over(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.evaluated = state["evaluated"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}))  # older checkpoints have none
        # older checkpoints have the state of the only technique
        saved = state["techniques"] if "techniques" in state else [state["stepper"]]
        for technique, own in zip(self.techniques, saved, strict=False):
            technique.load_state_dict(own)
        if self.tracker is not None:
            self.tracker.load_state_dict(state["tracker"])
        self.loss_sum.copy_(state["loss_sum"])
        self.metrics = state["metrics"]
        # as when the run began, even if its recipe has changed
        self.probes = self._make_probes(ProbeConfig(**state["recordings"]["settings"]))
        self.probes.load_state_dict(state["recordings"]["state"])
        self.pace.seconds = state["seconds"]
        self.watch.reset()
        self._renew()
        if self.group.rank < len(state["rng"]):  # else it continues from its own seed
            _set_rng_state(state["rng"][self.group.rank], self.group.device)


class GraphedTrainer(Trainer):
    """Trainer on a GPU whose step is two CUDA graphs; all techniques must be capturable.

    All batches must have one shape.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._backward_graph = Graph(self._captured_backward)
        self._update_graph = Graph(self._captured_update)

    def _forward_backward(self, batch: Batch, progress: float) -> Tensor:
        loss = self._backward_graph(*(tensor for tensor in batch if tensor is not None))
        assert loss is not None
        return loss

    def _update(self, progress: float) -> None:
        self._update_graph()

    def _renew(self) -> None:
        """Capture the update again: rates are Python numbers, and loaded state has new memory."""
        self._update_graph.forget()

    def _captured_backward(self, *batch: Tensor) -> Tensor:
        return super()._forward_backward(Batch(*batch), progress=0.0)

    def _captured_update(self) -> None:
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # a fused AdamW always is, but torch checks the flag
                group["capturable"] = capturing()
        super()._update(progress=0.0)


def _by_role(parts: list[Oscillation]) -> dict[str, float]:
    """Return oscillation measures of the whole model, and the oscillation rate of each role."""
    if not parts:
        return {}
    roles = dict.fromkeys(part.role for part in parts)
    return combine(parts) | {
        f"oscillation_rate/{role}": combine([p for p in parts if p.role == role])[
            "oscillation_rate"
        ]
        for role in roles
    }


def _rng_state(device: torch.device) -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [
            kind,
            torch.from_numpy(np.asarray(keys).astype("int64")),
            position,
            has_gauss,
            gauss,
        ],
        "python": random.getstate(),
    }


def _set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    kind, keys, position, has_gauss, gauss = state["numpy"]
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    np.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, gauss))
    random.setstate(state["python"])
