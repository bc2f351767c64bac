"""LSQ's rounding with its gradients (Esser et al. 2020), by itself and inside a product."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ofq.quantization.products import Product


class Rounding(NamedTuple):
    """What LSQ does beside its scale.

    Attributes:
        low: The lowest code.
        high: The highest code.
        gradient_scale: Factor g on the gradient of the scale.
    """

    low: int
    high: int
    gradient_scale: float

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """round(clamp(x/s, low, high))·s."""
        # the last step not in place: of an autograd function whose result some step changed in
        # place, torch 2.11's compiler loses the gradient
        return (x / scale).clamp_(self.low, self.high).round_() * scale

    def gradients(self, upstream: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x and of the scale."""
        ratio = x / scale
        closed = _just_outside(self.low, self.high)
        inside = torch.ops.aten.hardtanh_backward(upstream, ratio, *closed)
        # Σ g·(round(u) − u) inside and Σ g·bound outside, for u = x/s; in place, since a fresh
        # tensor of this size costs more than the arithmetic on it
        clamped = ratio.clamp_(self.low, self.high)
        slope = clamped.round().mul_(upstream).addcmul_(inside, clamped, value=-1)
        return inside, _sum_to(slope, scale).mul_(self.gradient_scale)


def _sum_to(x: Tensor, like: Tensor) -> Tensor:
    """The sum of a tensor over the dimensions in which another has length 1.

    First over the last ones, within a row: compiled code does that in the pass that computes x.
    """
    kept = [d for d in range(x.ndim) if like.shape[d] > 1]
    within = list(range(max(kept, default=-1) + 1, x.ndim))
    rows = x.sum(within, keepdim=True) if within else x
    return rows.sum_to_size(like.shape)


def _just_outside(low: int, high: int) -> tuple[float, float]:
    """The float32 numbers next to an interval, which make an operator's open interval closed."""
    below = low - _float32_spacing(low) if low else -torch.finfo(torch.float32).tiny
    return below, high + _float32_spacing(high)


def _float32_spacing(number: int) -> float:
    return 2.0 ** (math.frexp(abs(number))[1] - 24)


class _Quantize(torch.autograd.Function):
    """Saves its input and the scale only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.rounding = rounding
        return rounding.quantize(x, scale)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        return *ctx.rounding.gradients(upstream.contiguous(), x, scale), None


class _QuantizedProduct(torch.autograd.Function):
    """Saves the operand as it came in, and quantizes it again in backward.

    Autograd by itself would keep it twice, as it came in and quantized; the arithmetic costs less
    than moving another tensor of its size through memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        product: type[Product],
        rounding: Rounding,
        x: Tensor,
        scale: Tensor,
        *others: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, *others)
        ctx.product, ctx.rounding = product, rounding
        return product.forward(rounding.quantize(x, scale), *others)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *others = ctx.saved_tensors
        # under autocast the product, hence its gradient, is of lower precision
        operands = [
            None if tensor is None else tensor.to(upstream.dtype)
            for tensor in (ctx.rounding.quantize(x, scale), *others)
        ]
        of_quantized, *of_others = ctx.product.gradients(upstream, *operands)
        del operands
        of_x = ctx.rounding.gradients(of_quantized.to(x.dtype), x, scale)
        found = (
            None if gradient is None else gradient.to(other.dtype)
            for gradient, other in zip(of_others, others, strict=True)
        )
        return None, None, *of_x, *found


def lsq_quantize(x: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
    """round(clamp(x/s, low, high))·s with LSQ's gradients.

    Args:
        x: What is quantized, float32.
        scale: s, in a shape that broadcasts over ``x``.
        rounding: Codes, and the factor on the gradient of s.
    """
    return _Quantize.apply(x, scale, rounding)


def lsq_product(
    product: type[Product], x: Tensor, scale: Tensor, rounding: Rounding, *others: Tensor | None
) -> Tensor:
    """The product of :func:`lsq_quantize` of a tensor with others, in little memory.

    Args:
        product: Which product.
        x: What is quantized, float32.
        scale: s, in a shape that broadcasts over ``x``.
        rounding: Codes, and the factor on the gradient of s.
        *others: What the product takes beside the quantized tensor.
    """
    return _QuantizedProduct.apply(product, rounding, x, scale, *others)
