"""StatsQ: statistical weight quantization (OFQ, section on StatsQ)."""

import torch
from torch import Tensor

from ofq.quantization.quantizers.base import (
    WeightQuantizer,
    check_factor,
    check_gradient,
    register_weight_quantizer,
    straight_through,
)

_CLIP = 1 - 1e-6  # keeps w = s just below the threshold above the highest code, as released


@register_weight_quantizer("statsq")
class StatsQ(WeightQuantizer):
    """Weight quantizer whose scale is a statistic of each output row.

    With n = 2^(b−1) and s = 2·mean|w| over the row: v = clamp(w/s, −1, 1 − 1e-6),
    code = round(v·n − ½) in [−n, n−1], w_q = s·(code + ½)/n. There is no level at zero: at 2 bits
    the levels are ±s/4 and ±3s/4. The gradient is the identity for every weight, including
    clipped ones, and none flows through s. A row of zeros stays zero.

    Args:
        bits: Bit-width, 2 to 8.
        factor: f of the scale f·mean|w|, above 0; StatsQ's own is 2.
        gradient: ``everywhere``, or ``inside`` for a gradient of 0 outside the range of the
            levels, as in LSQ.

    Attributes:
        everywhere: Whether ``gradient`` is ``everywhere``.

    Raises:
        UserError: The bit-width, factor or gradient isn't allowed.

    Example:
        >>> import torch, ofq
        >>> ofq.StatsQ(bits=2)(torch.tensor([[-1.0, -0.1, 0.2, 0.7]]))
        tensor([[-0.7500, -0.2500,  0.2500,  0.7500]])
    """

    def __init__(self, bits: int, factor: float = 2.0, gradient: str = "everywhere") -> None:
        super().__init__(bits)
        self.factor = check_factor(factor)
        self.everywhere = check_gradient(gradient)

    def scale(self, weight: Tensor) -> Tensor:
        """Return f times the mean magnitude of each row, float32; matrices of a stack share it."""
        others = [d for d in range(weight.ndim) if d != weight.ndim - 2]
        weight = weight.detach().float()
        total = torch.linalg.vector_norm(weight, ord=1, dim=others, keepdim=True)
        return total * (self.factor * weight.shape[-2] / weight.numel())

    def step_size(self, weight: Tensor) -> Tensor:
        """Return s/n."""
        return self.scale(weight) / 2 ** (self.bits - 1)

    def position(self, weight: Tensor) -> Tensor:
        """Return v·n − ½."""
        return self._position(weight, self.step_size(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of shape (rows, in), or a stack (..., rows, in)."""
        step = self.step_size(weight)
        codes = self._position(weight, step).round_()
        if not self.everywhere:
            weight = weight.clamp((self.lowest + 0.5) * step, (self.highest + 0.5) * step)
        return straight_through(weight, _on_grid(codes, step))

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return s·(code + ½)/n."""
        return _on_grid(codes, scale / 2 ** (self.bits - 1))

    def _position(self, weight: Tensor, step: Tensor) -> Tensor:
        # a row of zeros has step 0: dividing by the smallest number instead gives 0, not NaN
        divisor = step.clamp_min(torch.finfo(step.dtype).tiny)
        half = 2 ** (self.bits - 1)
        # n is a power of two, so w/(s/n) is exactly n·(w/s)
        return (weight.detach().float() / divisor).clamp_(-half, half * _CLIP).sub_(0.5)


def _on_grid(codes: Tensor, step: Tensor) -> Tensor:
    return torch.addcmul(step / 2, codes, step)
