"""Base class and registry of techniques against oscillation."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ofq.errors import UserError
from ofq.registry import Registry


class Technique(nn.Module):
    """Base class of techniques against oscillation during the training of a quantized model.

    A subclass is constructed from a calibrated or loaded model, just before its first step, and
    overrides the hooks that it needs. :meth:`attach` is called once, with the optimizer. Each step
    calls the others in this order: :meth:`penalty` with the loss; :meth:`before_step` once the
    gradients are computed (averaged over all ranks; scaled, in fp16); then the optimizer steps;
    then :meth:`after_step`. Before each evaluation, :meth:`before_evaluation` is called, then
    :meth:`evaluated`. A technique keeps its state in buffers, for checkpoints; it must not
    register the model as a submodule.

    Attributes:
        capturable: Whether each step launches the same kernels, whatever the progress, so that it
            can be captured as a CUDA graph.
    """

    capturable = True

    def attach(self, optimizer: Optimizer) -> None:
        """Regroup the optimizer's parameters, before its state is loaded and its schedule made."""

    def penalty(self, progress: float) -> Tensor | float:
        """Return a scalar to add to the loss of each forward pass.

        Args:
            progress: Share of the training done, 0 to 1.
        """
        return 0.0

    def before_step(self, progress: float) -> None:
        """Change gradients, or save weights, before the optimizer steps."""

    def after_step(self, progress: float) -> None:
        """Change weights after the optimizer steps."""

    def before_evaluation(self, batches: Iterable[Tensor]) -> None:
        """Prepare the trained model for its evaluation.

        Args:
            batches: Inputs of shuffled training batches, prepared as for training, on the model's
                device and on this rank's part; loaded only as far as they are iterated over.
        """

    def evaluated(self, model: nn.Module) -> nn.Module:
        """Return the model to evaluate and to save as the run's result; by default, this one."""
        return model

    def metrics(self) -> dict[str, float]:
        """Return additional metrics of an epoch; may wait for the device."""
        return {}

    @torch.no_grad()
    def step(
        self, optimizer: Optimizer, scaler: GradScaler | None = None, progress: float = 0.0
    ) -> None:
        """Step an optimizer with this technique alone, for custom training loops.

        Args:
            optimizer: The optimizer.
            scaler: The gradient scaler to step it with, in mixed precision.
            progress: Share of the training done, 0 to 1.
        """
        self.before_step(progress)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        self.after_step(progress)


def check_begin(begin: float) -> float:
    """Return the share of the training before a schedule, or refuse one that isn't allowed.

    Raises:
        UserError: It isn't in [0, 1).
    """
    if not 0 <= begin < 1:
        raise UserError(f"begin {begin}; allowed: 0 or more, below 1")
    return begin


def scheduled(progress: float, begin: float) -> float:
    """Return the share done of a schedule that begins after a share of the training, 0 to 1."""
    return max(0.0, progress - begin) / (1 - begin)


def check_number(
    option: str, value: float, *, below: float = math.inf, zero: bool = False
) -> float:
    """Return the value of a technique's option, or refuse one that isn't allowed.

    Args:
        option: The option's name.
        value: Its value.
        below: Number that it must be below.
        zero: Whether it may be 0; it must be above otherwise.

    Raises:
        UserError: It isn't a number in the range; the message says which are allowed.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < below or (zero and value == 0)):
        range_ = f"{'from' if zero else 'above'} 0"
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise UserError(f"{option} {value!r}; allowed: a number {range_}, {limit}")
    return value


_Technique = TypeVar("_Technique", bound=Callable[..., Technique])
techniques: Registry[Callable[..., Technique]] = Registry("technique", Technique)


def register_technique(name: str) -> Callable[[_Technique], _Technique]:
    """Return a class decorator that registers a technique under a name.

    The class is called with the model, and with the method's options as keywords.

    Raises:
        UserError: The class is no :class:`Technique`, or another one has the name.
    """
    return techniques.register(name)


def make_technique(name: str, model: nn.Module, options: Mapping[str, Any]) -> Technique:
    """Make a registered technique for a model.

    Args:
        name: The registered name.
        model: The quantized model, calibrated or loaded.
        options: Keyword arguments of the technique other than the model.

    Raises:
        UserError: No technique has this name, or it doesn't accept these options or this model.
    """
    check_technique(name, options)
    technique: Technique = techniques.make(name, model, **options)
    return technique


def check_technique(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown technique, and options that the technique doesn't accept.

    Raises:
        UserError: The name or an option isn't allowed; the message lists those that are.
    """
    techniques.check_options(name, options, fixed=1)
