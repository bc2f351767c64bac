"""Inducing oscillation (Wenshøj et al. 2025, arXiv 2502.00490), for robustness to quantization."""

import torch
from torch import Tensor, nn

from ofq.quantization.layers import low_bit_weights, quantized_model, with_latent_levels
from ofq.quantization.quantizers.base import WeightQuantizer, straight_through
from ofq.quantization.techniques.base import Technique, check_number, register_technique


@register_technique("oscillation_inducing")
class OscillationInducing(Technique):
    """Penalty that pushes latent weights away from their level, towards a threshold.

    The penalty is λ·Σ over low-bit weights of mean(w_q² − clip(w)²), straight-through in w_q: its
    gradient is 2λ·(w_q − w)/n for each of the n weights within the range of levels, the opposite of
    dampening's, and 0 outside, where no threshold lies ahead. QKR's merged weight counts; its
    gradient reaches W_q and W_k.

    Args:
        model: A quantized model.
        strength: λ, above 0.

    Raises:
        UserError: The model isn't quantized, the strength isn't allowed, or levels aren't values of
            weights.
    """

    def __init__(self, model: nn.Module, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = check_number("strength", strength)
        model = quantized_model(model, "nothing to induce: ")
        self._weights = with_latent_levels(low_bit_weights(model), "oscillation_inducing")

    def penalty(self, progress: float) -> Tensor:
        """Return the penalty, a scalar, which is the same throughout the training."""
        terms = [_difference(w.latent(), w.quantizer) for w in self._weights]
        return self.strength * torch.stack(terms).sum()


def _difference(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    clipped = quantizer.clipped(weight)
    with torch.no_grad():
        level = quantizer(weight)
    return (straight_through(clipped, level).square() - clipped.square()).mean()
