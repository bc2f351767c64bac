"""Tracker of weight oscillation between codes (Nagel et al. 2022, arXiv 2203.11086)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.layers import QuantizedWeight, low_bit_weights, quantized_model
from ofq.quantization.quantizers.base import WeightQuantizer, near_threshold

MOMENTUM = 0.01
"""m of the oscillation frequency, if not given."""

THRESHOLD = 0.005
"""Oscillation frequency above which a code counts as oscillating, if not given.

One oscillation keeps a code above it for 69 steps at :data:`MOMENTUM`.
"""

_CONTINUED = ("frequency", "direction")


class CodeHistory(nn.Module):
    """Flips and oscillations of the integer codes of one matrix, over optimizer steps.

    With Δ = previous − current code, a *flip* is Δ ≠ 0, and an *oscillation* is a flip whose
    direction is opposite to that entry's last flip. The oscillation frequency is
    f ← m·oscillated + (1 − m)·f.

    Args:
        codes: The codes before the first step, a signed integer type.
        momentum: m.

    Attributes:
        previous: The codes after the last step, int8.
        direction: Δ's sign at each entry's last flip, 0 before its first, int8.
        frequency: f of each entry, float32.
        flips: Number of flips in each row since :meth:`reset_flips`.
    """

    previous: Tensor
    direction: Tensor
    frequency: Tensor
    flips: Tensor

    def __init__(self, codes: Tensor, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("previous", codes.clone())
        self.register_buffer("direction", torch.zeros_like(codes))
        self.register_buffer("frequency", torch.zeros_like(codes, dtype=torch.float32))
        self.register_buffer("flips", torch.zeros_like(codes[:, 0], dtype=torch.int64))

    def observe(self, codes: Tensor) -> Tensor:
        """Update the history with the codes after one more step, of the same type.

        Returns:
            1 for each entry that oscillated, 0 for others; float32.
        """
        # in float32, where codes are exact: compiled code vectorizes it, but not int8 and masks
        last = self.direction.float()
        direction = (self.previous.float() - codes).clamp_(-1, 1)
        flipped = direction.abs()
        oscillated = (direction * -last).clamp_(0, 1)
        self.frequency.mul_(1 - self.momentum).add_(oscillated, alpha=self.momentum)
        self.flips += flipped.flatten(1).sum(1).to(self.flips.dtype)
        self.direction.copy_(torch.where(flipped > 0, direction, last))
        self.previous.copy_(codes)
        return oscillated

    def reset_flips(self) -> None:
        """Set the count of flips to zero."""
        self.flips.zero_()


@dataclass(frozen=True)
class Oscillation:
    """Oscillation metrics of the weights of one role in one layer.

    Attributes:
        layer: The layer's name.
        role: q, k, v, proj, fc1, fc2, qk (merged query-key) or reduction.
        weights: Number of weights.
        oscillation_rate: Percentage of weights with f above the threshold.
        flips: Flips per 1,000 weights and step since the last summary.
        in_boundary_range: Percentage of weights inside the boundary range of a rounding threshold.
    """

    layer: str
    role: str
    weights: int
    oscillation_rate: float
    flips: float
    in_boundary_range: float


class OscillationTracker(nn.Module):
    """Tracker of the codes of all low-bit weights of a quantized model.

    All state is in buffers, so ``state_dict()`` holds it for checkpoints.

    Args:
        model: A quantized model before its first step.
        momentum: m of the oscillation frequency.
        threshold: A weight counts as oscillating if its frequency is above this.
        boundary_range: Largest distance to a rounding threshold, in quantization steps, at which
            weights are counted as inside the boundary range.
        compiled: Whether to compile :meth:`update` into one pass over each weight; on the CPU this
            needs a C++ compiler and some seconds at the first step.
        required: Whether to refuse a model without quantized layers; otherwise nothing of it is
            tracked.

    Attributes:
        steps: Number of updates.
        histories: A :class:`CodeHistory` for each low-bit weight.

    Raises:
        UserError: The model isn't quantized, and ``required``.

    Example:
        >>> import ofq, timm, torch
        >>> model = ofq.quantize(timm.create_model("deit_tiny_patch16_224", depth=1))
        >>> ofq.calibrate(model, torch.rand(2, 3, 224, 224))
        >>> tracker = ofq.OscillationTracker(model)
        >>> tracker.update()  # after each optimizer step
        >>> tracker.summary()[0].role
        'q'
    """

    steps: Tensor

    def __init__(
        self,
        model: nn.Module,
        momentum: float = MOMENTUM,
        threshold: float = THRESHOLD,
        boundary_range: float = 0.005,
        compiled: bool = False,
        required: bool = True,
    ) -> None:
        super().__init__()
        if required:
            model = quantized_model(model, "nothing to track: ")
        self._observe = _observe
        if compiled:
            self.compile()
        self.threshold = threshold
        self.boundary_range = boundary_range
        self._weights = list(low_bit_weights(model))
        self.histories = nn.ModuleList(
            CodeHistory(w.quantizer.codes(w.latent()), momentum) for w in self._weights
        )
        device = self._weights[0].latent().device if self._weights else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    def compile(self, *args: object, **kwargs: object) -> None:
        """Compile :meth:`update` into one pass over each weight."""
        self._observe = torch.compile(_observe, dynamic=True)

    def history(self) -> dict[str, Tensor]:
        """Return what a tracker of a further stage goes on from, by layer.

        ``LAYER.frequency`` is f of each weight, float32; ``LAYER.direction`` the direction of its
        last flip, int8. Codes follow from the weights.
        """
        return {
            f"{weight.layer}.{name}": getattr(history, name)
            for weight, history in self._pairs()
            for name in _CONTINUED
        }

    def go_on_from(self, history: dict[str, Tensor]) -> None:
        """Go on from the :meth:`history` of an earlier stage of the same weights.

        Raises:
            UserError: It is of other layers, or of weights of other shapes.
        """
        own = self.history()
        if {name: tensor.shape for name, tensor in history.items()} != {
            name: tensor.shape for name, tensor in own.items()
        }:
            raise UserError("the tracker's history is of another model")
        for name, tensor in own.items():
            tensor.copy_(history[name])

    def _pairs(self) -> Iterator[tuple[QuantizedWeight, CodeHistory]]:
        for weight, history in zip(self._weights, self.histories, strict=True):
            assert isinstance(history, CodeHistory)
            yield weight, history

    @torch.no_grad()
    def update(self) -> None:
        """Update all histories with the weights after an optimizer step."""
        self.steps += 1
        for weight, history in self._pairs():
            self._observe(history, weight.quantizer, weight.latent().detach())

    @torch.no_grad()
    def summary(self) -> list[Oscillation]:
        """Return the metrics of each layer and role, and reset flips; waits for the device."""
        steps = max(1, int(self.steps))
        summary = []
        for weight, history in self._pairs():
            quantizer = weight.quantizer
            near = near_threshold(
                quantizer.position(weight.latent()),
                self.boundary_range,
                quantizer.lowest,
                quantizer.highest,
            )
            oscillating = history.frequency > self.threshold
            for role, rows in weight.roles.items():
                count = near[rows].numel()
                summary.append(
                    Oscillation(
                        weight.layer,
                        role,
                        count,
                        100 * float(oscillating[rows].sum()) / count,
                        1000 * float(history.flips[rows].sum()) / count / steps,
                        100 * float(near[rows].sum()) / count,
                    )
                )
            history.reset_flips()
        self.steps.zero_()
        return summary


def _observe(history: CodeHistory, quantizer: WeightQuantizer, latent: Tensor) -> None:
    history.observe(quantizer.codes(latent))


def combine(parts: list[Oscillation]) -> dict[str, Any]:
    """Average the metrics of several layers or roles, weighted by their numbers of weights."""
    total = sum(part.weights for part in parts)

    def mean(name: str) -> float:
        return sum(getattr(part, name) * part.weights for part in parts) / total

    return {name: mean(name) for name in ("oscillation_rate", "flips", "in_boundary_range")}
