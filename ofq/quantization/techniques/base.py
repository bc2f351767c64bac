"""What a technique against oscillation can do around an optimizer step, and its registry."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ofq.errors import UserError


class Technique(nn.Module):
    """Base class of what is done about oscillation while a quantized model trains.

    A subclass is made from a calibrated or loaded model, just before its first step, and overrides
    the hooks that it needs. In each step they are called in this order: :meth:`penalty` with the
    loss, :meth:`before_step` when the gradients are there (averaged over all ranks; scaled, in
    fp16), then the optimizer steps, then :meth:`after_step`. A technique keeps its state in
    buffers, which checkpoints hold; it must not register the model as a submodule.

    Attributes:
        capturable: Whether each step launches the same kernels, whatever the progress, so that it
            can be captured as a CUDA graph.
    """

    capturable = True

    def penalty(self, progress: float) -> Tensor | float:
        """Return what is added to the loss of each forward pass, a scalar.

        Args:
            progress: Share of the training done, 0 to 1.
        """
        return 0.0

    def before_step(self, progress: float) -> None:
        """Change gradients, or remember weights, before the optimizer steps."""

    def after_step(self, progress: float) -> None:
        """Change weights after the optimizer has stepped."""

    def evaluated(self, model: nn.Module) -> nn.Module:
        """Return the model that evaluation sees and the run ends with; by default, this one."""
        return model

    def metrics(self) -> dict[str, float]:
        """Return what is added to an epoch's metrics; may wait for the device."""
        return {}

    @torch.no_grad()
    def step(
        self, optimizer: Optimizer, scaler: GradScaler | None = None, progress: float = 0.0
    ) -> None:
        """Step an optimizer under this technique alone, for training loops of one's own.

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


_REGISTRY: dict[str, Callable[..., Technique]] = {}
_Technique = TypeVar("_Technique", bound=Callable[..., Technique])


def register_technique(name: str) -> Callable[[_Technique], _Technique]:
    """Class decorator that makes a technique available to methods under a name.

    The class is called with the model, and with the method's options as keywords.

    Raises:
        UserError: It is no :class:`Technique`, or the name is taken by another one.
    """

    def register(technique: _Technique) -> _Technique:
        if isinstance(technique, type) and not issubclass(technique, Technique):
            raise UserError(f"technique '{name}': {technique} is no ofq.Technique")
        known = _REGISTRY.get(name)
        if known is not None and _place(known) != _place(technique):
            raise UserError(f"a technique named '{name}' is already registered")
        _REGISTRY[name] = technique
        return technique

    return register


def _place(technique: object) -> tuple[str, str]:
    """Where it is defined; the same if it is defined anew, as by a cell of a notebook."""
    return getattr(technique, "__module__", ""), getattr(technique, "__qualname__", "")


def technique_names() -> list[str]:
    """Return the names under which techniques are registered."""
    return sorted(_REGISTRY)


def make_technique(name: str, model: nn.Module, options: Mapping[str, Any]) -> Technique:
    """Make a registered technique for a model.

    Args:
        name: The registered name.
        model: The quantized model, calibrated or loaded.
        options: What the technique takes beside the model.

    Raises:
        UserError: No technique has this name, or it doesn't take these options or this model.
    """
    if name not in _REGISTRY:
        raise UserError(f"unknown technique '{name}'; allowed: {', '.join(technique_names())}")
    try:
        return _REGISTRY[name](model, **options)
    except TypeError as error:
        raise UserError(f"technique '{name}': {error}") from None
