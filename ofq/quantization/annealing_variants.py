"""Other ways to anneal, behind CGA's interface: its ratio form, and a control."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ofq.quantization.annealing import ConfidenceGuidedAnnealing, step_optimizer
from ofq.quantization.attention import MergedQueryKey
from ofq.quantization.layers import QuantizedWeight, low_bit_weights, quantized_model
from ofq.quantization.quantizer import WeightQuantizer


def as_written(nearest: Tensor, farthest: Tensor) -> Tensor:
    """Confidence nearest/farthest: highest for weights far outside the range of levels."""
    return nearest / farthest


def as_intended(nearest: Tensor, farthest: Tensor) -> Tensor:
    """Confidence 1 − nearest/farthest: highest for weights on a level."""
    return 1 - nearest / farthest


Confidence = Callable[[Tensor, Tensor], Tensor]
CONFIDENCES: dict[str, Confidence] = {"as_written": as_written, "as_intended": as_intended}


class RatioAnnealing:
    """CGA in ratio form: gradients by the distances to the nearest and the farthest level.

    With confidence c of a weight, its gradient is zeroed where c > ½, and multiplied by alpha
    elsewhere; values are not restored, so momentum and decay still move every weight.

    Between the outermost levels nearest/farthest is at most 1/(2^b − 1), so read as written c
    exceeds ½ only for weights more than 2^b − 1 steps outside them, and nearly nothing is frozen;
    read as intended, nearly everything is. Neither singles out weights near a threshold. QKR's
    merged weight, a product of parameters, is left out.

    Args:
        model: A quantized model.
        alpha: Factor on the gradients that pass.
        confidence: :func:`as_written` or :func:`as_intended`.
    """

    def __init__(
        self, model: nn.Module, alpha: float = 0.9, confidence: Confidence = as_written
    ) -> None:
        self.alpha = alpha
        self.confidence = confidence
        self._weights = list(_own_weights(quantized_model(model, "nothing to anneal: ")))

    @torch.no_grad()
    def step(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Step the optimizer with gradients zeroed or damped.

        Args:
            optimizer: The optimizer.
            scaler: The gradient scaler to step it with, in mixed precision.
        """
        for weight in self._weights:
            gradient = weight.latent().grad
            if gradient is not None:
                gradient.mul_(self.alpha).masked_fill_(self._frozen(weight), 0)
        step_optimizer(optimizer, scaler)

    @torch.no_grad()
    def frozen_share(self) -> float:
        """Percentage of the annealed weights whose gradient is zeroed now."""
        masks = [self._frozen(weight) for weight in self._weights]
        return 100 * float(sum(m.sum() for m in masks)) / sum(m.numel() for m in masks)

    def _frozen(self, weight: QuantizedWeight) -> Tensor:
        latent, quantizer = weight.latent(), weight.quantizer
        nearest = (latent - quantizer(latent)).abs()
        ends = [quantizer.level(latent, code) for code in (quantizer.lowest, quantizer.highest)]
        farthest = torch.maximum(*((latent - end).abs() for end in ends))
        return self.confidence(nearest, farthest) > 0.5


class FreezeAll(ConfidenceGuidedAnnealing):
    """A control beside CGA: every low-bit weight is frozen, threshold or not.

    Args:
        model: A quantized model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def _trainable(self, quantizer: WeightQuantizer, position: Tensor) -> Tensor:
        return torch.zeros_like(position, dtype=torch.bool)


def _own_weights(model: nn.Module) -> list[QuantizedWeight]:
    """The low-bit weights that are parameters themselves, not products of parameters."""
    return [w for w in low_bit_weights(model) if not isinstance(w.owner, MergedQueryKey)]
