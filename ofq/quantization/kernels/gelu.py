"""GELU fused with the LSQ behind it."""

from typing import Any

import torch
from torch import Tensor

from ofq.quantization.kernels.launch import blocks_of, launch, scale_of
from ofq.quantization.quantizers.lsq import LSQ

_POSITIONS, _COLUMNS, _IMAGES = 16, 64, 8  # per program
_BLOCK = {"POSITIONS": _POSITIONS, "COLUMNS": _COLUMNS, "IMAGES": _IMAGES}


def gelu_lsq(x: Tensor, shift: Tensor, quantizer: LSQ) -> Tensor:
    """Compute LSQ(GELU(x) + shift), with a scale per position.

    Args:
        x: (..., N, C), which :func:`~ofq.quantization.kernels.fitting.fits`.
        shift: (C,).
        quantizer: LSQ with a scale per position, :func:`~ofq.quantization.kernels.fitting.ready`.
    """
    return _forward(x, shift, scale_of(quantizer, x), *quantizer.rounding(x.numel()))


def _sizes(x: Tensor, scale: Tensor) -> tuple[int, int, int]:
    """Return the numbers of images, positions and columns."""
    return x.numel() // x.shape[-1] // len(scale), len(scale), x.shape[-1]


def _grid(images: int, positions: int, columns: int) -> tuple[int, int, int]:
    return (
        blocks_of(positions, _POSITIONS),
        blocks_of(columns, _COLUMNS),
        blocks_of(images, _IMAGES),
    )


def _output(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("ofq::gelu_lsq", mutates_args=())
def _forward(
    x: Tensor, shift: Tensor, scale: Tensor, low: int, high: int, gradient_scale: float
) -> Tensor:
    from ofq.quantization.kernels.triton import gelu as kernels

    out = _output(x)
    sizes = _sizes(x, scale)
    inputs = x.contiguous(), shift, scale
    launch(kernels.gelu_lsq, _grid(*sizes), *inputs, out, *sizes, low, high, **_BLOCK)
    return out


def _gradients(
    upstream: Tensor, x: Tensor, shift: Tensor, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate gradients: of x; of shift and scale, one for each program, to be summed."""
    sizes = _sizes(x, scale)
    of_positions, of_columns, of_images = _grid(*sizes)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        scale.new_empty(of_images * of_positions, sizes[2]),
        scale.new_empty(of_images * of_columns, sizes[1]),
    )


@torch.library.custom_op("ofq::gelu_lsq_backward", mutates_args=())
def _backward(
    upstream: Tensor, x: Tensor, shift: Tensor, scale: Tensor, low: int, high: int
) -> tuple[Tensor, Tensor, Tensor]:
    from ofq.quantization.kernels.triton import gelu as kernels

    inputs = upstream.contiguous(), x.contiguous(), shift, scale
    gradients = _gradients(*inputs)
    sizes = _sizes(x, scale)
    launch(
        kernels.gelu_lsq_backward, _grid(*sizes), *inputs, *gradients, *sizes, low, high, **_BLOCK
    )
    return gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    *ctx.range, ctx.gradient_scale = inputs[3:]


def _of_inputs(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_shift, of_scale = _backward(upstream, *ctx.saved_tensors, *ctx.range)
    return of_x, of_shift.sum(0), of_scale.sum(0) * ctx.gradient_scale, None, None, None


_forward.register_fake(_output)
_forward.register_autograd(_of_inputs, setup_context=_keep)
_backward.register_fake(_gradients)
