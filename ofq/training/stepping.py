"""What happens around an optimizer step: annealing, or a baseline against oscillation."""

from typing import Protocol

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ofq.quantization import (
    ConfidenceGuidedAnnealing,
    Dampening,
    FreezeAll,
    IterativeFreezing,
    RatioAnnealing,
)
from ofq.quantization.annealing import AsPaper
from ofq.quantization.annealing_variants import CONFIDENCES
from ofq.quantization.released import AsReleased
from ofq.study import RunConfig
from ofq.study.method import Band, Freezing, Ratio


class Stepper:
    """A plain optimizer step; subclasses do more.

    Attributes:
        state: What a checkpoint must keep of it.
        steady: Whether it launches the same kernels at every step, whatever the progress.
    """

    state: nn.Module = nn.Module()
    steady = True

    def penalty(self, progress: float) -> Tensor | float:
        """What is added to the loss, given the share of the training done."""
        return 0.0

    def step(self, optimizer: Optimizer, progress: float, scaler: GradScaler) -> None:
        """Step the optimizer by way of a gradient scaler, given the share of the training done."""
        scaler.step(optimizer)

    def measures(self) -> dict[str, float]:
        """What is added to an epoch's metrics."""
        return {}


class _Annealing(Protocol):
    def step(self, optimizer: Optimizer, scaler: GradScaler) -> None: ...

    def frozen_share(self) -> float: ...


class AnnealedStep(Stepper):
    """A step under CGA, or a variant of it.

    Args:
        annealing: The annealing of the model.
    """

    def __init__(self, annealing: _Annealing) -> None:
        self.annealing = annealing
        self.steady = isinstance(annealing, ConfidenceGuidedAnnealing)

    def step(self, optimizer: Optimizer, progress: float, scaler: GradScaler) -> None:
        """Step the optimizer with some weights frozen."""
        self.annealing.step(optimizer, scaler)

    def measures(self) -> dict[str, float]:
        """``frozen``: percentage of the annealed weights that are frozen now."""
        return {"frozen": self.annealing.frozen_share()}


class FreezingStep(Stepper):
    """A step with iterative freezing.

    Args:
        freezing: The freezing of the model.
    """

    steady = False

    def __init__(self, freezing: IterativeFreezing) -> None:
        self.state = self.freezing = freezing

    def step(self, optimizer: Optimizer, progress: float, scaler: GradScaler) -> None:
        """Step the optimizer, then freeze what oscillates."""
        self.freezing.step(optimizer, progress, scaler)

    def measures(self) -> dict[str, float]:
        """``frozen``: percentage of the weights that are frozen."""
        return {"frozen": self.freezing.frozen_share()}


class DampenedStep(Stepper):
    """A plain step with a penalty on the distance from the quantized weights.

    Args:
        dampening: The penalty.
    """

    steady = False

    def __init__(self, dampening: Dampening) -> None:
        self.dampening = dampening

    def penalty(self, progress: float) -> Tensor | float:
        """The dampening penalty."""
        return self.dampening.penalty(progress)


def make_stepper(config: RunConfig, model: nn.Module, compiled: bool = False) -> Stepper:
    """The stepper that a run's config asks for, its CGA compiled or not."""
    annealing, stabilizer = config.annealing, config.stabilizer
    if isinstance(annealing, Band):
        rule = AsReleased(model) if annealing.rule == "as_released" else AsPaper()
        boundary_range = annealing.boundary_range
        return AnnealedStep(ConfidenceGuidedAnnealing(model, boundary_range, rule, compiled))
    if isinstance(annealing, Ratio):
        confidence = CONFIDENCES[annealing.confidence]
        return AnnealedStep(RatioAnnealing(model, annealing.alpha, confidence))
    if annealing is not None:
        return AnnealedStep(FreezeAll(model)) if annealing.form == "freeze_all" else Stepper()
    if isinstance(stabilizer, Freezing):
        return FreezingStep(IterativeFreezing(model, stabilizer.start, stabilizer.end))
    if stabilizer is not None:
        return DampenedStep(Dampening(model, stabilizer.strength))
    return Stepper()
