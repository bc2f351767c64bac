"""LSQ's rounding with its gradients (Esser et al. 2020), alone and fused into a product."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ofq.quantization.products import Product


class Rounding(NamedTuple):
    """Code range and gradient factor of an LSQ quantizer.

    Attributes:
        low: The lowest code.
        high: The highest code.
        gradient_scale: Factor g on the gradient of the scale.
    """

    low: int
    high: int
    gradient_scale: float

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """Compute round(clamp(x/s, low, high))·s."""
        # the last step isn't in place: torch 2.11's compiler loses the gradient of an autograd
        # function whose result was modified in place
        return (x / scale).clamp_(self.low, self.high).round_() * scale

    def gradients(self, upstream: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of the scale."""
        ratio = x / scale
        closed = _just_outside(self.low, self.high)
        inside = torch.ops.aten.hardtanh_backward(upstream, ratio, *closed)
        # Σ g·(round(u) − u) inside and Σ g·bound outside, for u = x/s; in place, since a fresh
        # tensor of this size costs more than the arithmetic on it
        clamped = ratio.clamp_(self.low, self.high)
        slope = clamped.round().mul_(upstream).addcmul_(inside, clamped, value=-1)
        return inside, _sum_to(slope, scale).mul_(self.gradient_scale)


def _sum_to(x: Tensor, like: Tensor) -> Tensor:
    """Sum a tensor over the dimensions in which another has length 1.

    The last dimensions come first, within a row: compiled code fuses that with computing x.
    """
    long = [d for d in range(x.ndim) if like.shape[d] > 1]
    within = list(range(max(long, default=-1) + 1, x.ndim))
    rows = x.sum(within, keepdim=True) if within else x
    return rows.sum_to_size(like.shape)


def _just_outside(low: int, high: int) -> tuple[float, float]:
    """Return the float32 numbers just outside an interval.

    An operator that takes an open interval then includes the bounds.
    """
    below = low - _float32_spacing(low) if low else -torch.finfo(torch.float32).tiny
    return below, high + _float32_spacing(high)


def _float32_spacing(number: int) -> float:
    return 2.0 ** (math.frexp(abs(number))[1] - 24)


class _Quantize(torch.autograd.Function):
    """LSQ's rounding that saves only its input and the scale for backward."""

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
    """Product that saves its operand unquantized, and quantizes it again in backward.

    Autograd would save it twice, unquantized and quantized; quantizing again costs less than moving
    another tensor of its size through memory.
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
        # under autocast the product, and so its gradient, has lower precision
        operands = [
            None if tensor is None else tensor.to(upstream.dtype)
            for tensor in (ctx.rounding.quantize(x, scale), *others)
        ]
        of_quantized, *of_others = ctx.product.gradients(upstream, *operands)
        del operands
        of_x = ctx.rounding.gradients(of_quantized.to(x.dtype), x, scale)
        gradients = (
            None if gradient is None else gradient.to(other.dtype)
            for gradient, other in zip(of_others, others, strict=True)
        )
        return None, None, *of_x, *gradients


def lsq_quantize(x: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
    """Compute round(clamp(x/s, low, high))·s with LSQ's gradients.

    Args:
        x: The tensor to quantize, float32.
        scale: s, in a shape that broadcasts over ``x``.
        rounding: Code range, and the factor on the gradient of s.
    """
    return _Quantize.apply(x, scale, rounding)


def lsq_product(
    product: type[Product], x: Tensor, scale: Tensor, rounding: Rounding, *others: Tensor | None
) -> Tensor:
    """Multiply :func:`lsq_quantize` of a tensor with others, in little memory.

    Args:
        product: The product.
        x: The tensor to quantize, float32.
        scale: s, in a shape that broadcasts over ``x``.
        rounding: Code range, and the factor on the gradient of s.
        *others: Other operands of the product.
    """
    return _QuantizedProduct.apply(product, rounding, x, scale, *others)
