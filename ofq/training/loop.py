"""The training loop, from calibration or a checkpoint to the last epoch."""

import random
import time
from dataclasses import asdict
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn

from ofq.interruption import Interrupted, StopRequest
from ofq.quantization import Oscillation, OscillationTracker, combine
from ofq.study import Training
from ofq.training.checkpoint import CheckpointStore
from ofq.training.data import Data
from ofq.training.objective import Objective
from ofq.training.optimization import make_optimizer, make_schedule
from ofq.training.stepping import Stepper
from ofq.training.trajectory import Trajectories

_SAVE_EVERY = 60.0  # seconds


class Observer(Protocol):
    """What training reports to; the one seam to records and progress bars."""

    def begin(self, done: int | None, total: int) -> None:
        """Training starts, or goes on where a checkpoint was taken; later records are void.

        Args:
            done: Steps already made; None at the very start.
            total: Steps of the whole run.
        """

    def step(self, step: int) -> None:
        """An optimizer step was made."""

    def epoch(self, metrics: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        """An epoch ended (or, as epoch 0, none has begun)."""

    def trajectory(self, rows: list[dict[str, Any]]) -> None:
        """The recorded weights' paths over one epoch."""


class Trainer:
    """Trains one model for one stage.

    Args:
        model: The model; a quantized one is calibrated.
        data: What it trains on.
        objective: What it minimizes.
        training: The stage's hyperparameters.
        stepper: How the optimizer steps.
        observer: Who hears of it.
        checkpoints: Where state is kept, and looked for at the start.
        stop: Looked at after every step.
        scale_lr: Factor on the learning rate of learned weight scales.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        objective: Objective,
        training: Training,
        stepper: Stepper,
        observer: Observer,
        checkpoints: CheckpointStore,
        stop: StopRequest,
        scale_lr: float = 1.0,
    ) -> None:
        self.model = model
        self.data = data
        self.objective = objective
        self.training = training
        self.stepper = stepper
        self.observer = observer
        self.checkpoints = checkpoints
        self.stop = stop
        self.tracker = OscillationTracker(model)
        self.trajectories = Trajectories(model, training.trajectories)
        self.optimizer = make_optimizer(model, training, scale_lr)
        self.schedule = make_schedule(self.optimizer, training)
        self.steps_per_epoch = data.steps_per_epoch(training.batch_size)
        self.total_steps = training.epochs * self.steps_per_epoch
        self.step = 0
        self.loss_sum = torch.zeros(())
        self.metrics: dict[str, Any] = {}
        self._saved_at = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the end, from the newest checkpoint if there is one.

        Returns:
            The last epoch's metrics.

        Raises:
            Interrupted: A stop was requested; the state is saved.
        """
        resumed = self.checkpoints.load()
        if resumed is not None:
            self._restore(resumed)
        self.observer.begin(None if resumed is None else self.step, self.total_steps)
        if resumed is None:
            self._finish_epoch(0)
        for epoch in range(self.step // self.steps_per_epoch, self.training.epochs):
            self._train_epoch(epoch)
            self._finish_epoch(epoch + 1)
        return self.metrics

    def _train_epoch(self, epoch: int) -> None:
        self.model.train()
        self.schedule.step(epoch)
        first = self.step - epoch * self.steps_per_epoch
        for inputs, targets in self.data.train_batches(epoch, self.training.batch_size, first):
            self._train_step(inputs, targets)
            self.observer.step(self.step)
            if self.step % self.steps_per_epoch:  # an epoch's end is saved after its record
                self._save_if_due()

    def _train_step(self, inputs: Tensor, targets: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        progress = self.step / self.total_steps
        loss = self.objective.loss(self.model(inputs), targets, inputs)
        (loss + self.stepper.penalty(progress)).backward()
        self.stepper.step(self.optimizer, progress)
        self.step += 1
        self.loss_sum += loss.detach()
        self.tracker.update()
        self.trajectories.update(self.step)

    def _finish_epoch(self, epoch: int) -> None:
        """Evaluate and report after an epoch; after none, the model as it is at the start."""
        parts = self.tracker.summary()
        train_loss = float(self.loss_sum) / self.steps_per_epoch if epoch else None
        self.loss_sum.zero_()
        self.metrics = {
            "epoch": epoch,
            "step": self.step,
            "time": time.time(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            **self.objective.evaluate(self.model, self.data.test_batches()),
            **_by_role(parts),
            **self.stepper.measures(),
        }
        stamp = {"epoch": epoch, "step": self.step}
        self.observer.trajectory(self.trajectories.take())
        self.observer.epoch(self.metrics, [{**stamp, **asdict(part)} for part in parts])
        if 0 < epoch < self.training.epochs:
            self._save_if_due()

    def _save_if_due(self) -> None:
        if self.stop.cause is not None:
            self._save()
            raise Interrupted(self.stop.cause)
        if time.monotonic() - self._saved_at > _SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stepper": self.stepper.state.state_dict(),
            "tracker": self.tracker.state_dict(),
            "loss_sum": self.loss_sum,
            "metrics": self.metrics,
            "trajectories": self.trajectories.rows,
            "rng": _rng_state(),
        }
        self.checkpoints.save(self.step, state)
        self._saved_at = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stepper.state.load_state_dict(state["stepper"])
        self.tracker.load_state_dict(state["tracker"])
        self.loss_sum = state["loss_sum"]
        self.metrics = state["metrics"]
        self.trajectories.rows = state["trajectories"]
        _set_rng_state(state["rng"])


def _by_role(parts: list[Oscillation]) -> dict[str, float]:
    """Oscillation figures of the whole model, and the oscillation rate of each role."""
    if not parts:
        return {}
    roles = dict.fromkeys(part.role for part in parts)
    return combine(parts) | {
        f"oscillation_rate/{role}": combine([p for p in parts if p.role == role])[
            "oscillation_rate"
        ]
        for role in roles
    }


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [
            kind,
            torch.from_numpy(numpy.asarray(keys).astype("int64")),
            position,
            has_gauss,
            gauss,
        ],
        "python": random.getstate(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    kind, keys, position, has_gauss, gauss = state["numpy"]
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, gauss))
    random.setstate(state["python"])


def seed_everything(seed: int) -> None:
    """Seed torch, NumPy and Python, and ask torch for deterministic algorithms."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
