"""Oscillation dampening (Nagel et al. 2022, arXiv 2203.11086, section 4.2), a baseline."""

import math

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.layers import (
    QuantizedWeight,
    low_bit_weights,
    quantized_model,
    with_latent_levels,
)
from ofq.quantization.quantizers.base import WeightQuantizer
from ofq.quantization.techniques.base import (
    Technique,
    check_begin,
    register_technique,
    scheduled,
)


@register_technique("dampening")
class Dampening(Technique):
    """Penalty that pulls latent weights to the middle of their quantization bin.

    The penalty is λ·Σ (w_q − clip(w))² over all low-bit weights, w clipped to the range of levels
    and w_q detached; λ rises from 0 to ``strength`` along a cosine.

    Args:
        model: A quantized model.
        strength: λ at the end.
        aggregation: ``sum`` over a layer's weights, or ``kernel_mean`` for the sum over its rows
            of each row's mean, the released code's default.
        begin: Share of the training after which λ rises, in [0, 1).

    Raises:
        UserError: The aggregation or the share isn't allowed, or levels aren't values of weights.
    """

    capturable = False

    def __init__(
        self, model: nn.Module, strength: float, aggregation: str = "sum", begin: float = 0.0
    ) -> None:
        super().__init__()
        if aggregation not in ("sum", "kernel_mean"):
            raise UserError(f"aggregation {aggregation!r}; allowed: 'sum', 'kernel_mean'")
        self.strength = strength
        self._by_row = aggregation == "kernel_mean"
        self.begin = check_begin(begin)
        model = quantized_model(model, "nothing to dampen: ")
        self._weights = with_latent_levels(low_bit_weights(model), "dampening")

    def penalty(self, progress: float) -> Tensor:
        """Return the penalty, a scalar.

        Args:
            progress: Share of the training done, 0 to 1.
        """
        factor = self.strength * (1 - math.cos(math.pi * scheduled(progress, self.begin))) / 2
        return factor * torch.stack([self._of(w) for w in self._weights]).sum()

    def _of(self, weight: QuantizedWeight) -> Tensor:
        latent = weight.latent()
        distance = _distance(latent, weight.quantizer)
        return distance / latent[0].numel() if self._by_row else distance


def _distance(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    with torch.no_grad():
        level = quantizer(weight)
    return (level - quantizer.clipped(weight)).square().sum()
