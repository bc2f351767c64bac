"""Variants of StatsQ and LSQ as weight quantizers.

These are another form of StatsQ, and two controls that combine the grid of one with the scale of
the other. Like StatsQ and LSQ, the controls take ``factor`` and ``gradient``, so that two of these
four can differ in any one of grid, scale, initial step and gradient.
"""

import math

import torch
from torch import Tensor, nn

from ofq.quantization.quantizers.base import (
    WeightQuantizer,
    check_factor,
    check_gradient,
    register_weight_quantizer,
    straight_through,
    zero_with_gradient,
)
from ofq.quantization.quantizers.lsq import add_to_gradient, floored
from ofq.quantization.quantizers.statsq import StatsQ
from ofq.quantization.rounding import Rounding, lsq_quantize

_SMALLEST = 1e-5


@register_weight_quantizer("statsq_moments")
class StatsQMoments(WeightQuantizer):
    """StatsQ in moments form: the row's range is a multiple of its standard deviation.

    With k = 2^(b−1) − ½: R = k·std(w) + 1e-5 over the row (unbiased), w clipped to [−R, R], and 2^b
    evenly spaced levels from −R to R. The gradient is the identity, and none flows through R.

    Args:
        bits: Bit-width, 2 to 8.
    """

    def scale(self, weight: Tensor) -> Tensor:
        """Return R of each row."""
        factor = 2 ** (self.bits - 1) - 0.5
        return factor * weight.detach().float().std(-1, keepdim=True) + _SMALLEST

    def step_size(self, weight: Tensor) -> Tensor:
        """Return 2R/(2^b − 1)."""
        return self._step(self.scale(weight))

    def position(self, weight: Tensor) -> Tensor:
        """Return (w + R)/(2R)·(2^b − 1), shifted so that codes start at −2^(b−1)."""
        limit = self.scale(weight)
        clipped = weight.detach().float().clamp(-limit, limit)
        return (clipped + limit) / self.step_size(weight) + self.lowest

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of shape (rows, in)."""
        codes = self.position(weight).round_()
        return straight_through(weight, self.decode(codes, self.scale(weight)))

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return (code − lowest)·2R/(2^b − 1) − R."""
        return (codes - self.lowest) * self._step(scale) - scale

    def _step(self, scale: Tensor) -> Tensor:
        return scale * (2 / (2**self.bits - 1))


@register_weight_quantizer("lsq_statistical")
class StatisticalLSQ(WeightQuantizer):
    """LSQ's grid, which has a level at zero, with a statistical scale instead of a learned one.

    s = f·mean|w|/√Qp over the row, computed at every step as LSQ's initial scale is, detached;
    w_q = s·round(clamp(w/s, Qn, Qp)). The gradient is the identity inside the range, 0 outside, as
    in LSQ.

    Args:
        bits: Bit-width, 2 to 8.
        factor: f, above 0.
        gradient: ``inside``, or ``everywhere`` for the identity for every weight, as in StatsQ.

    Attributes:
        everywhere: Whether ``gradient`` is ``everywhere``.

    Raises:
        UserError: The bit-width, factor or gradient isn't allowed.
    """

    def __init__(self, bits: int, factor: float = 2.0, gradient: str = "inside") -> None:
        super().__init__(bits)
        self.factor = check_factor(factor)
        self.everywhere = check_gradient(gradient)

    def scale(self, weight: Tensor) -> Tensor:
        """Return the scale s of each row."""
        mean = weight.detach().float().abs().mean(-1, keepdim=True)
        return (mean * (self.factor / math.sqrt(self.highest))).clamp_min(_SMALLEST)

    def step_size(self, weight: Tensor) -> Tensor:
        """Return the scale, which is the step size."""
        return self.scale(weight)

    def position(self, weight: Tensor) -> Tensor:
        """Return w/s, clamped to the code range."""
        ratio = weight.detach().float() / self.scale(weight)
        return ratio.clamp_(self.lowest, self.highest)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of shape (rows, in)."""
        scale = self.scale(weight)
        quantized = self.decode(self.position(weight).round_(), scale)
        if not self.everywhere:
            weight = weight.float().clamp(self.lowest * scale, self.highest * scale)
        return straight_through(weight, quantized)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return code·s."""
        return codes * scale


@register_weight_quantizer("statsq_learned")
class LearnedStatsQ(WeightQuantizer):
    """StatsQ's grid, which has a threshold at zero, with a learned scale as in LSQ.

    With step δ per row, started at StatsQ's s/n for s = f·mean|w|:
    w_q = δ·(round(clamp(w/δ − ½, −n, n−1)) + ½), which is LSQ on a grid shifted by half a step,
    with LSQ's gradients for weight and step.

    Args:
        bits: Bit-width, 2 to 8.
        factor: f of the initial step, above 0.
        gradient: ``inside``, or ``everywhere`` for the identity for every weight, as in StatsQ;
            the step's gradient is the same.

    Attributes:
        everywhere: Whether ``gradient`` is ``everywhere``.
        learned: δ of each row.

    Raises:
        UserError: The bit-width, factor or gradient isn't allowed.
    """

    def __init__(self, bits: int, factor: float = 2.0, gradient: str = "inside") -> None:
        super().__init__(bits)
        self.factor = check_factor(factor)
        self.everywhere = check_gradient(gradient)
        self.learned = nn.Parameter(torch.empty(0))

    def initialize(self, weight: Tensor) -> None:
        """Set δ from StatsQ's scale."""
        self.learned.data = StatsQ(self.bits, self.factor).step_size(weight).flatten()

    def scale(self, weight: Tensor) -> Tensor:
        """Return δ of each row."""
        return floored(self.learned).unsqueeze(-1).detach()

    def step_size(self, weight: Tensor) -> Tensor:
        """Return δ."""
        return self.scale(weight)

    def position(self, weight: Tensor) -> Tensor:
        """Return w/δ − ½, clamped to the code range."""
        position = weight.detach().float() / self.scale(weight) - 0.5
        return position.clamp_(self.lowest, self.highest)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of shape (rows, in)."""
        if self.everywhere:
            return self._quantize(weight.detach()) + zero_with_gradient(weight)
        return self._quantize(weight)

    def _quantize(self, weight: Tensor) -> Tensor:
        step = floored(self.learned).unsqueeze(-1)
        gradient_scale = self._gradient_scale(weight)
        # the shift of the grid is half a step, so its gradient has the factor of the step's
        shift = (step.detach() + gradient_scale * (step - step.detach())) / 2
        rounding = Rounding(self.lowest, self.highest, gradient_scale)
        on_grid = lsq_quantize(weight.float() - shift, step, rounding)
        return on_grid + shift

    def learn_from_held(self, weight: Tensor, gradient: Tensor, codes: Tensor) -> None:
        """Add g·Σ (code + ½)·∂L/∂w_q of each row."""
        add_to_gradient(self.learned, (codes + 0.5) * gradient, self._gradient_scale(codes))

    def _gradient_scale(self, weight: Tensor) -> float:
        """Return LSQ's g."""
        return 1 / math.sqrt(self.highest * weight.shape[-1])

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return code·δ + δ/2."""
        return codes * scale + scale / 2
