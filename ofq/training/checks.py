"""Checks for invalid numbers in training, which don't wait for the device at each step."""

import torch
from torch import Tensor, nn

from ofq.errors import RunFailed
from ofq.models.compiling import uncompiled
from ofq.quantization import low_bit_weights


class BadNumbers(RunFailed):
    """Error: training met a number that it can't continue with.

    Attributes:
        step: The optimizer step in which it appeared.
        layer: The layer; empty for the loss itself.
        cause: Description of the number.
    """

    def __init__(self, step: int, layer: str, cause: str) -> None:
        self.step = step
        self.layer = layer
        self.cause = cause
        where = f"{layer}: " if layer else ""
        super().__init__(f"step {step}: {where}{cause}")


class LossWatch:
    """Record, on the device, of the first step whose loss wasn't finite.

    Args:
        device: Device of the loss.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def observe(self, loss: Tensor, step: int) -> None:
        """Check the loss of a step, counted from 1; doesn't wait for the device."""
        first_bad = ~loss.detach().isfinite() & (self._first == 0)
        self._first += first_bad * step

    def first_bad_step(self) -> int | None:
        """Return that step, or None if there is none; waits for the device."""
        return int(self._first) or None

    def reset(self) -> None:
        """Forget that step."""
        self._first.zero_()


def first_bad_parameter(model: nn.Module) -> tuple[str, str] | None:
    """Return layer and cause of the first parameter or buffer with a number that isn't finite."""
    named = [(n, t) for n, t in model.state_dict().items() if t.is_floating_point() and t.numel()]
    if not named:
        return None
    # stacked, to wait for the device once rather than once per tensor
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    for (name, tensor), good in zip(named, finite, strict=True):
        if not good:
            return name.rpartition(".")[0], f"{name.rpartition('.')[2]} holds {_kind(tensor)}"
    return None


def zero_variance(model: nn.Module) -> tuple[str, str] | None:
    """Return layer and cause of the first quantized weight with a row of equal values.

    The row's scale then says nothing about its weights (a row of zeros has none): such weights are
    damaged, or a model's dead channel.
    """
    candidates = []
    for weight in low_bit_weights(model):
        latent = weight.latent().detach()
        if latent.shape[-1] > 1:
            candidates.append((weight, latent.amax(-1) == latent.amin(-1)))
    if not candidates:
        return None
    counts = torch.stack([flat.sum() for _, flat in candidates]).tolist()
    for (weight, flat), count in zip(candidates, counts, strict=True):
        if count:
            row = int(flat.flatten().nonzero()[0])
            return weight.layer, f"zero-variance scale: all weights of row {row} are equal"
    return None


def first_bad_output(model: nn.Module, inputs: Tensor) -> tuple[str, str] | None:
    """Return layer and cause of the first output that isn't finite, in one forward pass."""
    faults: list[tuple[str, str]] = []

    def inspect(name: str, outputs: object) -> None:
        if not faults and isinstance(outputs, Tensor) and not outputs.isfinite().all():
            faults.append((name, f"its output holds {_kind(outputs)}, its parameters are finite"))

    handles = [
        module.register_forward_hook(lambda _, __, outputs, name=name: inspect(name, outputs))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), uncompiled():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return faults[0] if faults else None


def _kind(tensor: Tensor) -> str:
    return "nan" if tensor.isnan().any() else "inf"
