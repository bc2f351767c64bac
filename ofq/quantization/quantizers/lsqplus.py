"""LSQ+ (Bhalgat et al. 2020, arXiv 2004.09576): initial scale by deviation, learned offset."""

import math

import torch
from torch import Tensor, nn

from ofq.quantization.activations import ActivationQuantizer, register_activation_quantizer
from ofq.quantization.quantizers.base import register_weight_quantizer
from ofq.quantization.quantizers.lsq import LSQWeight, floored
from ofq.quantization.rounding import Rounding, lsq_quantize


@register_weight_quantizer("lsqplus")
class LSQPlusWeight(LSQWeight):
    """LSQ on weights, with LSQ+'s initial scale max(|μ − 3σ|, |μ + 3σ|)/2^(b−1) of each row.

    μ and σ are mean and standard deviation (unbiased) of the row. All else is LSQ's.

    Args:
        bits: Bit-width, 2 to 8.
        gradient: As in :class:`LSQWeight`.

    Raises:
        UserError: The bit-width or gradient isn't allowed.
    """

    def __init__(self, bits: int, gradient: str = "inside") -> None:
        super().__init__(bits, gradient=gradient)

    def initialize(self, weight: Tensor) -> None:
        """Set the scales from the weight."""
        rows = weight.detach().float().flatten(1)
        mean, reach = rows.mean(1), 3 * rows.std(1)
        self.lsq.scale.data = torch.maximum((mean - reach).abs(), (mean + reach).abs()) / (
            2 ** (self.bits - 1)
        )


@register_activation_quantizer("lsqplus")
class LSQPlus(ActivationQuantizer):
    """Activation quantizer with a learned step size and a learned offset.

    y = s·round(clamp((x − β)/s, Qn, Qp)) + β. dy/dx is 1 inside, 0 outside; dy/ds is
    round(u) − u inside for u = (x − β)/s, and Qn or Qp outside; dy/dβ is 0 inside, 1 outside; the
    gradients of s and β have LSQ's factor g. The first tensor sets both so that Qn and Qp lie at
    its least and greatest value.

    Args:
        bits: Bit-width, 2 to 8.
        axis: The dimension or dimensions that have a scale and an offset per index.
        signed: Which codes there are; with the offset, they make no difference to the levels.

    Attributes:
        scale: s of each index of the axis; empty until a tensor sets it.
        offset: β of each index.
    """

    def __init__(
        self, bits: int, axis: int | tuple[int, ...] | None = None, signed: bool = True
    ) -> None:
        super().__init__(bits, axis, signed)
        self.scale = nn.Parameter(torch.empty(0))
        self.offset = nn.Parameter(torch.empty(0))

    def initialize(self, x: Tensor) -> None:
        """Set scales and offsets from the range of a tensor."""
        x = x.detach().float()
        axes = {d % x.ndim for d in self.axis}
        others = [d for d in range(x.ndim) if d not in axes]
        least, greatest = x.amin(others).reshape(-1), x.amax(others).reshape(-1)
        low, high = self.range
        self.scale.data = (greatest - least) / (high - low)
        self.offset.data = least - low * self.scale.data

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor; the first one sets scales and offsets."""
        self.prepare(x)
        low, high = self.range
        g = 1 / math.sqrt(high * self.batch_ratio * x.numel() / self.scale.numel())
        offset = self.along_axis(self.offset.float(), x)
        offset = offset.detach() + g * (offset - offset.detach())
        scale = self.along_axis(floored(self.scale), x)
        return lsq_quantize(x.float() - offset, scale, Rounding(low, high, g)) + offset

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Return round(clamp((x − β)/s, Qn, Qp)), int16."""
        scale = self.along_axis(floored(self.scale), x)
        position = (x.float() - self.along_axis(self.offset.float(), x)) / scale
        return position.clamp_(*self.range).round_().to(torch.int16)
