"""Oscillation dampening (Nagel et al. 2022, arXiv 2203.11086, section 4.2), a baseline."""

import math

import torch
from torch import Tensor, nn

from ofq.quantization.layers import low_bit_weights, quantized_model
from ofq.quantization.quantizers.base import WeightQuantizer
from ofq.quantization.techniques.base import Technique, register_technique


@register_technique("dampening")
class Dampening(Technique):
    """Penalty that pulls latent weights to the middle of their quantization bin.

    The penalty is λ·Σ (w_q − clip(w))² over all low-bit weights, w clipped to the range of levels
    and w_q detached; λ rises from 0 to ``strength`` along a cosine.

    Args:
        model: A quantized model.
        strength: λ at the end.
    """

    capturable = False

    def __init__(self, model: nn.Module, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self._weights = list(low_bit_weights(quantized_model(model, "nothing to dampen: ")))

    def penalty(self, progress: float) -> Tensor:
        """Return the penalty, a scalar.

        Args:
            progress: Share of the training done, 0 to 1.
        """
        factor = self.strength * (1 - math.cos(math.pi * progress)) / 2
        total = torch.stack([_distance(w.latent(), w.quantizer) for w in self._weights]).sum()
        return factor * total


def _distance(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    with torch.no_grad():
        level = quantizer(weight)
        low, high = (quantizer.level(weight, c) for c in (quantizer.lowest, quantizer.highest))
    return (level - weight.clamp(low, high)).square().sum()
