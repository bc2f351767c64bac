"""LSQ: quantization with a learned step size (Esser et al. 2020), as OFQ uses it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.activations import ActivationQuantizer, register_activation_quantizer
from ofq.quantization.products import Product
from ofq.quantization.quantizers.base import (
    WeightQuantizer,
    check_factor,
    check_gradient,
    register_weight_quantizer,
    zero_with_gradient,
)
from ofq.quantization.rounding import Rounding, lsq_product, lsq_quantize

_SMALLEST = 1e-5  # floor of the scale
_NEGATIVE = -1e-5  # images with a value below this get signed codes


def floored(scale: Tensor) -> Tensor:
    """Clamp a learned scale, in float32, to 1e-5 or above, with a straight-through gradient."""
    scale = scale.float()
    return scale - scale.detach() + scale.detach().clamp_min(_SMALLEST)


def add_to_gradient(scale: nn.Parameter, slope: Tensor, factor: float | Tensor) -> None:
    """Add the sum over each row of slopes, times a factor, to the gradient of the rows' scales."""
    if scale.grad is not None:
        scale.grad += factor * slope.flatten(1).sum(1).reshape(scale.shape)


@register_activation_quantizer("lsq")
class LSQ(ActivationQuantizer):
    """Quantizer with learned step sizes (LSQ): scales along one axis.

    y = round(clamp(x/s, Qn, Qp))·s, rounding half to even; signed Qn = −2^(b−1), Qp = 2^(b−1) − 1;
    unsigned 0 and 2^b − 1. dy/dx is 1 on the closed interval, 0 outside; dy/ds = g·(round(x/s) −
    x/s) inside and g·Qn or g·Qp outside, with g = 1/√(Qp · elements per scale). The scale is
    clamped to 1e-5 or above, with a straight-through gradient. Where the batch is an axis without
    scales, the elements per scale include it: g counts the batch of one forward pass, as in the
    released code, unless :func:`ofq.quantization.set_gradient_batch` sets another one.

    The first tensor sets the scales to f·mean|x|/√Qp; f = 4 for an unsigned quantizer with an
    axis, else 2. Arithmetic is in float32, even under autocast.

    Args:
        bits: Bit-width, 2 to 8.
        axis: The dimension or dimensions that have a scale per index; None for one scale.
        signed: Whether codes may be negative.

    Attributes:
        scale: One scale per index of the axis (flattened); empty until a tensor sets it.

    Example:
        >>> import torch, ofq
        >>> ofq.LSQ(bits=2)(torch.tensor([-2.0, 0.2, 0.3, 1.5]))
        tensor([-2.,  0.,  0.,  2.], grad_fn=<_QuantizeBackward>)
    """

    scale: nn.Parameter

    def __init__(
        self, bits: int, axis: int | tuple[int, ...] | None = None, signed: bool = True
    ) -> None:
        super().__init__(bits, axis, signed)
        self.scale = nn.Parameter(torch.empty(0))

    def initialize(self, x: Tensor) -> None:
        """Set the scales from a tensor."""
        x = x.detach().float()
        axes = {d % x.ndim for d in self.axis}
        mean = x.abs().mean([d for d in range(x.ndim) if d not in axes]).reshape(-1)
        factor = 4 if self.axis and not self.signed else 2
        # assigned to .data, so that an existing optimizer still holds the parameter
        self.scale.data = mean * (factor / math.sqrt(self.range[1]))

    def effective_scale(self, x: Tensor) -> Tensor:
        """Return the scales, clamped to 1e-5 or above, in a shape that broadcasts over ``x``.

        Raises:
            UserError: The tensor's axis differs in length from the scales.
        """
        return self.along_axis(floored(self.scale), x)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor; the first one sets the scales."""
        self.prepare(x)
        return lsq_quantize(x.float(), self.effective_scale(x), self.rounding(x.numel()))

    def product(self, product: type[Product], x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the product of the quantized ``x`` with other tensors, in little memory."""
        operand = product.operand(x, *others)
        self.prepare(operand)
        rounding = self.rounding(operand.numel())
        return lsq_product(product, x.float(), self.effective_scale(x), rounding, *others)

    def codes(self, x: Tensor) -> Tensor:
        """Return round(clamp(x/s, Qn, Qp)), int16."""
        ratio = x.detach().float() / self.effective_scale(x).detach()
        return ratio.clamp_(*self.range).round_().to(torch.int16)

    def rounding(self, elements: int) -> Rounding:
        """Return the code range and gradient factor for a tensor with this number of elements."""
        low, high = self.range
        per_scale = self.batch_ratio * elements / self.scale.numel()
        return Rounding(low, high, 1 / math.sqrt(high * per_scale))


class ImageLSQ(LSQ):
    """LSQ for images (B, channels, H, W): a scale per channel, signed only if the images are.

    The sign is determined when the scales are set, and stored in a buffer; the initial scale has
    f = 2 in both cases.

    Args:
        bits: Bit-width, 2 to 8.
    """

    has_negative: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits, axis=1)
        self.register_buffer("has_negative", torch.tensor(True))

    def initialize(self, x: Tensor) -> None:
        """Set the sign and the scales from images."""
        self._set_sign(bool(x.min() < _NEGATIVE))
        mean = x.detach().float().abs().mean((0, 2, 3))
        self.scale.data = mean * (2 / math.sqrt(self.range[1]))

    def _set_sign(self, negative: bool) -> None:
        self.signed = negative
        self.has_negative.fill_(negative)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.signed = bool(self.has_negative)


class MagnitudeLSQ(LSQ):
    """LSQ whose scales have the gradient factor g = 1/√(Qp · Σ|x|) (Huang et al. 2024).

    Σ|x|, over the elements of a scale, is in the place of their number. Scales are along the first
    axis.

    Args:
        bits: Bit-width, 2 to 8.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(bits, axis=0)

    def effective_scale(self, x: Tensor) -> Tensor:
        """Return the scales of LSQ, with their gradient times :meth:`ratio`."""
        scale = super().effective_scale(x)
        ratio = self.ratio(x).reshape(scale.shape)
        return scale.detach() + ratio * (scale - scale.detach())

    @staticmethod
    def ratio(x: Tensor) -> Tensor:
        """Return g, relative to LSQ's, of each row: 1/√mean|x|."""
        mean = x.detach().float().abs().flatten(1).mean(1)
        # a row of zeros has no slope, which a finite factor leaves at zero
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).rsqrt()


@register_weight_quantizer("lsq")
class LSQWeight(WeightQuantizer):
    """LSQ on weights: one learned scale per output row (linear) or output channel (convolution).

    Args:
        bits: Bit-width, 2 to 8.
        factor: f of the initial scale f·mean|w|/√Qp, above 0.
        gradient: ``inside``, or ``everywhere`` for the identity for every weight, as in StatsQ;
            the scale's gradient is the same.
        gradient_factor: g of the scale's gradient: ``count`` for LSQ's own 1/√(Qp · number of
            weights of the scale), ``l1`` for 1/√(Qp · Σ|w|) over them.

    Attributes:
        lsq: LSQ with the scales.
        everywhere: Whether ``gradient`` is ``everywhere``.

    Raises:
        UserError: The bit-width, factor, gradient or gradient factor isn't allowed.
    """

    def __init__(
        self,
        bits: int,
        factor: float = 2.0,
        gradient: str = "inside",
        gradient_factor: str = "count",
    ) -> None:
        super().__init__(bits)
        if gradient_factor not in ("count", "l1"):
            raise UserError(f"gradient_factor {gradient_factor!r}; allowed: 'count', 'l1'")
        self.lsq = LSQ(bits, axis=0) if gradient_factor == "count" else MagnitudeLSQ(bits)
        self.factor = check_factor(factor)
        self.everywhere = check_gradient(gradient)

    def initialize(self, weight: Tensor) -> None:
        """Set the scales from the weight."""
        self.lsq.initialize(weight)
        self.lsq.scale.data *= self.factor / 2

    def scale(self, weight: Tensor) -> Tensor:
        """Return the learned step size of each row."""
        return self.lsq.effective_scale(weight).detach()

    def step_size(self, weight: Tensor) -> Tensor:
        """Return the scale, which is the step size."""
        return self.scale(weight)

    def position(self, weight: Tensor) -> Tensor:
        """Return w/s, clamped to the code range."""
        return (weight.detach().float() / self.scale(weight)).clamp_(self.lowest, self.highest)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of shape (rows, ...)."""
        if self.everywhere:
            return self.lsq(weight.detach()) + zero_with_gradient(weight)
        return self.lsq(weight)

    def learn_from_held(self, weight: Tensor, gradient: Tensor, codes: Tensor) -> None:
        """Add g·Σ code·∂L/∂w_q of each row, as in the released code for frozen weights."""
        factor: float | Tensor = self.lsq.rounding(codes.numel()).gradient_scale
        if isinstance(self.lsq, MagnitudeLSQ):
            factor = factor * self.lsq.ratio(weight)
        add_to_gradient(self.lsq.scale, codes * gradient, factor)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return code·s."""
        return codes * scale
