"""StatsQ: statistical weight quantization (OFQ, section on StatsQ)."""

import torch
from torch import Tensor

from ofq.quantization.quantizer import WeightQuantizer, register_weight_quantizer, straight_through

_CLIP = 1 - 1e-6  # keeps w = s just below the threshold above the highest code, as released


@register_weight_quantizer("statsq")
class StatsQ(WeightQuantizer):
    """Quantizes each output row with a scale that is a statistic of the row.

    With n = 2^(b−1) and s = 2·mean|w| over the row: v = clamp(w/s, −1, 1 − 1e-6),
    code = round(v·n − ½) in [−n, n−1], w_q = s·(code + ½)/n. There is no level at zero: at 2 bits
    the levels are ±s/4 and ±3s/4. The gradient is the identity for every weight, clipped ones too,
    and none flows through s. A row of zeros stays zero.

    Args:
        bits: Bit-width, 2 to 8.

    Example:
        >>> import torch, ofq
        >>> ofq.StatsQ(bits=2)(torch.tensor([[-1.0, -0.1, 0.2, 0.7]]))
        tensor([[-0.7500, -0.2500,  0.2500,  0.7500]])
    """

    def scale(self, weight: Tensor) -> Tensor:
        """Twice the mean magnitude of each row, float32; a stack's matrices share it."""
        others = [d for d in range(weight.ndim) if d != weight.ndim - 2]
        return weight.detach().float().abs().mean(others, keepdim=True) * 2

    def step(self, weight: Tensor) -> Tensor:
        """s/n."""
        return self.scale(weight) / 2 ** (self.bits - 1)

    def position(self, weight: Tensor) -> Tensor:
        """See :meth:`WeightQuantizer.position`."""
        return self._position(weight, self.scale(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of shape (rows, in), or a stack (..., rows, in)."""
        scale = self.scale(weight)
        position = self._position(weight, scale)
        quantized = position.round_().add_(0.5).mul_(scale / 2 ** (self.bits - 1))
        return straight_through(weight, quantized)

    def _position(self, weight: Tensor, scale: Tensor) -> Tensor:
        # a row of zeros has scale 0: dividing by the smallest number instead gives 0, not NaN
        divisor = scale.clamp_min(torch.finfo(scale.dtype).tiny)
        half = 2 ** (self.bits - 1)
        return (weight.detach().float() / divisor).clamp_(-1, _CLIP).mul_(half).sub_(0.5)
