"""Attention kernels that take logits and values."""

import math
from typing import Any

import torch
from torch import Tensor

from ofq.quantization.kernels.launch import blocks_of, launch, scale_of
from ofq.quantization.quantizers.lsq import LSQ

_TILE = 64  # queries or keys
_STAGES = 3


def attend_logits(logits: Tensor, values: Tensor, quantizer: LSQ, factor: float) -> Tensor:
    """Compute LSQ(softmax(factor · logits)) V̂ of every head.

    Args:
        logits: (B, H, N, M), M ≥ N, which :func:`~ofq.quantization.kernels.fitting.fits_attention`;
            the last M − N columns are padding.
        values: (B, H, N, d), of the same dtype.
        quantizer: Quantizer of the probabilities, :func:`~ofq.quantization.kernels.fitting.ready`.
        factor: Factor on the logits.

    Returns:
        (B, N, H·d).
    """
    _, high, gradient_scale = quantizer.rounding(logits[..., : values.shape[-2]].numel())
    scale = scale_of(quantizer, logits)
    return _forward(logits, values, scale, factor, high, gradient_scale)[0]


def _layout(logits: Tensor, values: Tensor) -> tuple[tuple[int, ...], dict[str, int]]:
    """Return widths and strides of the inputs, and the compile-time constants of the kernels.

    All rows of logits can be read ``VECTOR`` entries at a time, at most 8, which are 16 bytes.
    """
    *strides, _ = logits.stride()
    vector = math.gcd(8, logits.shape[-1], *strides)
    widths = (logits.shape[-1], *strides)
    numbers = (*(width // vector for width in widths), *values.stride()[:3])
    blocks = blocks_of(values.shape[2], _TILE)
    sizes = {"CHANNELS": values.shape[3], "TILE": _TILE, "BLOCKS": blocks, "VECTOR": vector}
    return numbers, sizes


def _outputs(logits: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the result, and the tensors saved for backward: inner and totals."""
    images, heads, tokens, channels = values.shape
    out = values.new_empty(images, tokens, heads * channels)
    totals = values.new_empty(images, heads, tokens, dtype=torch.float32)
    return out, torch.empty_like(out), totals


@torch.library.custom_op("ofq::attend_logits", mutates_args=())
def _forward(
    logits: Tensor,
    values: Tensor,
    p_scale: Tensor,
    factor: float,
    highest: int,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from ofq.quantization.kernels.triton import logits as kernels

    images, heads, tokens, _ = values.shape
    outputs = _outputs(logits, values)
    (columns, *strides), sizes = _layout(logits, values)
    launch(
        kernels.attend_logits,
        (images * heads, sizes["BLOCKS"]),
        *(logits, values, p_scale),
        *outputs,
        *(heads, tokens, columns, factor, highest),
        *strides,
        **sizes,
        num_stages=1,
    )
    return outputs


def _gradients(
    upstream: Tensor, logits: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate gradients: of logits and values, with their strides; of scales, for each head."""
    images, heads, tokens, _ = values.shape
    of_logits, of_values = (x.new_empty_strided(x.shape, x.stride()) for x in (logits, values))
    of_rows = values.new_empty(images * heads, tokens, dtype=torch.float32)
    return of_logits, of_values, of_rows


@torch.library.custom_op("ofq::attend_logits_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    logits: Tensor,
    values: Tensor,
    out: Tensor,
    inner: Tensor,
    totals: Tensor,
    p_scale: Tensor,
    factor: float,
    highest: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from ofq.quantization.kernels.triton import logits as kernels

    images, heads, tokens, _ = values.shape
    inputs = upstream.contiguous(), logits, values, out, inner, totals, p_scale
    gradients = _gradients(upstream, logits, values)
    (columns, *strides), sizes = _layout(logits, values)
    # blocks of keys include the padding, whose gradients are 0
    launch(
        kernels.attend_logits_backward,
        (images * heads, blocks_of(logits.shape[-1], _TILE)),
        *inputs,
        *gradients,
        *(heads, tokens, columns, factor, highest),
        *strides,
        **sizes,
        num_stages=_STAGES,
    )
    return gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:2], *output, inputs[2])
    *ctx.rest, ctx.gradient_scale = inputs[3:]


def _of_inputs(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    of_logits, of_values, of_rows = _backward(upstream, *ctx.saved_tensors, *ctx.rest)
    return of_logits, of_values, of_rows.sum(0) * ctx.gradient_scale, None, None, None


_forward.register_fake(_outputs)
_forward.register_autograd(_of_inputs, setup_context=_keep)
_backward.register_fake(_gradients)
