"""Numbers that training can't go on with: found without waiting for the device at each step."""

import torch
from torch import Tensor, nn

from ofq.errors import RunFailed
from ofq.quantization import low_bit_weights
from ofq.training.compile import uncompiled


class BadNumbers(RunFailed):
    """Training met a number that it can't go on with.

    Attributes:
        step: The optimizer step in which it appeared.
        layer: Where; empty if in the loss itself.
        cause: What was found there.
    """

    def __init__(self, step: int, layer: str, cause: str) -> None:
        self.step = step
        self.layer = layer
        self.cause = cause
        where = f"{layer}: " if layer else ""
        super().__init__(f"step {step}: {where}{cause}")


class LossWatch:
    """Remembers, on the device, the first step whose loss wasn't finite.

    Args:
        device: Where the loss lies.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def observe(self, loss: Tensor, step: int) -> None:
        """Take in the loss of a step, counted from 1."""
        first_bad = ~loss.detach().isfinite() & (self._first == 0)
        self._first += first_bad * step

    def first_bad_step(self) -> int | None:
        """That step, if there was one; waits for the device."""
        return int(self._first) or None

    def reset(self) -> None:
        """Forget it."""
        self._first.zero_()


def first_bad_parameter(model: nn.Module) -> tuple[str, str] | None:
    """Layer and cause of the first parameter or buffer with a number that isn't finite."""
    named = [(n, t) for n, t in model.state_dict().items() if t.is_floating_point() and t.numel()]
    if not named:
        return None
    # in one go: the device is waited for once, not once per tensor
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    for (name, tensor), good in zip(named, finite, strict=True):
        if not good:
            return name.rpartition(".")[0], f"{name.rpartition('.')[2]} holds {_kind(tensor)}"
    return None


def zero_variance(model: nn.Module) -> tuple[str, str] | None:
    """Layer and cause of the first quantized weight with a row whose values are all equal.

    The row's scale then says nothing about its weights (a row of zeros even has none): such weights
    are damaged, or a model's dead channel.
    """
    found = []
    for weight in low_bit_weights(model):
        latent = weight.latent().detach()
        if latent.shape[-1] > 1:
            found.append((weight, latent.amax(-1) == latent.amin(-1)))
    if not found:
        return None
    counts = torch.stack([flat.sum() for _, flat in found]).tolist()
    for (weight, flat), count in zip(found, counts, strict=True):
        if count:
            row = int(flat.flatten().nonzero()[0])
            return weight.layer, f"zero-variance scale: all weights of row {row} are equal"
    return None


def first_bad_output(model: nn.Module, inputs: Tensor) -> tuple[str, str] | None:
    """Layer and cause of the first output that isn't finite, in one forward pass."""
    found: list[tuple[str, str]] = []

    def look(name: str, outputs: object) -> None:
        if not found and isinstance(outputs, Tensor) and not outputs.isfinite().all():
            found.append((name, f"its output holds {_kind(outputs)}, its parameters are finite"))

    handles = [
        module.register_forward_hook(lambda _, __, outputs, name=name: look(name, outputs))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), uncompiled():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _kind(tensor: Tensor) -> str:
    return "nan" if tensor.isnan().any() else "inf"
