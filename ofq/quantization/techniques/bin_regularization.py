"""Bin regularization (Huang et al. 2024, arXiv 2307.00331): weights of a bin are kept together."""

import math

import torch
from torch import Tensor, nn

from ofq.quantization.layers import low_bit_weights, quantized_model, with_latent_levels
from ofq.quantization.quantizers.base import WeightQuantizer
from ofq.quantization.techniques.base import Technique, check_number, register_technique


@register_technique("bin_regularization")
class BinRegularization(Technique):
    """Penalty on the distance of latent weights from their level, and on their variance in a bin.

    The penalty is λ·Σ over low-bit weights of [mean((w_q − clip(w))²) + Σ over bins of
    var(clip(w))], w clipped to the range of levels and w_q detached. A bin is the weights of one
    code that share a scale; its variance is the unbiased one, 0 with fewer than two weights, and
    the sum over bins is averaged over the scales of the weight. λ rises from 0 to ``strength``
    along a cosine, from the share ``start`` of the training on. QKR's merged weight counts; its
    gradient reaches W_q and W_k.

    Args:
        model: A quantized model.
        strength: λ at the end, above 0.
        start: Share of the training without penalty, from 0, below 1.

    Raises:
        UserError: The model isn't quantized, an option isn't allowed, or levels aren't values of
            weights.
    """

    capturable = False  # λ is a number in the code

    def __init__(self, model: nn.Module, strength: float = 0.01, start: float = 0.25) -> None:
        super().__init__()
        self.strength = check_number("strength", strength)
        self.start = check_number("start", start, below=1, zero=True)
        model = quantized_model(model, "nothing to regularize: ")
        self._weights = with_latent_levels(low_bit_weights(model), "bin_regularization")

    def penalty(self, progress: float) -> Tensor | float:
        """Return the penalty, a scalar.

        Args:
            progress: Share of the training done, 0 to 1.
        """
        share = (progress - self.start) / (1 - self.start)
        if share <= 0:
            return 0.0
        factor = self.strength * (1 - math.cos(math.pi * share)) / 2
        return factor * torch.stack([_spread(w.latent(), w.quantizer) for w in self._weights]).sum()


def _spread(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    clipped = quantizer.clipped(weight)
    with torch.no_grad():
        level = quantizer(weight)
        mean, share = _bins(weight, clipped, quantizer)
    # a mean's own gradient adds up to zero over its bin, so it may be detached
    return (level - clipped).square().mean() + (share * (clipped - mean).square()).sum()


def _bins(weight: Tensor, values: Tensor, quantizer: WeightQuantizer) -> tuple[Tensor, Tensor]:
    """Return the mean of each weight's bin, and the weight's factor in the sum of variances."""
    codes, step = quantizer.codes(weight), quantizer.step_size(weight)
    step = step.reshape((1,) * (weight.ndim - step.ndim) + step.shape)
    shared = [dimension for dimension in range(weight.ndim) if step.shape[dimension] == 1]
    mean, share = torch.zeros_like(values), torch.zeros_like(values)
    for code in range(quantizer.lowest, quantizer.highest + 1):
        inside = codes == code
        count = inside.sum(shared, keepdim=True)
        total = torch.where(inside, values, 0).sum(shared, keepdim=True)
        mean = torch.where(inside, total / count.clamp(min=1), mean)
        own = (count > 1) / ((count - 1).clamp(min=1) * step.numel())
        share = torch.where(inside, own, share)
    return mean, share
