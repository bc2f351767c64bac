"""Attention kernels that take queries, keys and values as one tensor."""

from typing import Any

import torch
from torch import Tensor

from ofq.quantization.kernels.launch import blocks_of, launch, scale_of
from ofq.quantization.quantizers.lsq import LSQ

_TILE = 64  # queries or keys
_STAGES = 3
# registers that let a Hopper multiprocessor run three programs at once, though some spill
_KEY_OPTIONS = {"num_stages": 2, "maxnreg": 168}


def attend(
    qkv: Tensor,
    quantizers: tuple[LSQ, LSQ, LSQ, LSQ],
    afters: tuple[Tensor, Tensor],
    heads: int,
    factor: float,
) -> Tensor:
    """Compute LSQ(softmax(factor · Q̂ K̂ᵀ)) V̂ of every head.

    Q̂ = LSQ(Q) + after, K̂ = LSQ(K) and V̂ = LSQ(V) + after.

    Args:
        qkv: (B, N, 3C), which :func:`~ofq.quantization.kernels.fitting.fits_attention`.
        quantizers: Quantizers of queries, keys, values and probabilities, all
            :func:`~ofq.quantization.kernels.fitting.ready`; the first three have one code range.
        afters: Shifts after the quantizers of queries and values, (C,) each.
        heads: H.
        factor: Factor on the logits.

    Returns:
        (B, N, C).
    """
    images, tokens, _ = qkv.shape
    part = qkv.chunk(3, -1)[0]
    *_, p = quantizers
    roundings = [quantizer.rounding(part.numel()) for quantizer in quantizers[:3]]
    roundings.append(p.rounding(images * heads * tokens**2))
    scales = [scale_of(quantizer, part) for quantizer in quantizers]
    low, high, _ = roundings[0]
    gradient_scales = [rounding.gradient_scale for rounding in roundings]
    return _forward(qkv, *scales, *afters, heads, factor, low, high, p.range[1], gradient_scales)[0]


def _sizes(qkv: Tensor, heads: int) -> dict[str, int]:
    """Return the compile-time constants of the kernels."""
    _, tokens, width = qkv.shape
    blocks = blocks_of(tokens, _TILE)
    return {"HEADS": heads, "CHANNELS": width // 3 // heads, "TILE": _TILE, "BLOCKS": blocks}


def _outputs(
    qkv: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    p_scale: Tensor,
    q_after: Tensor,
    v_after: Tensor,
    heads: int,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the result, and tensors saved for backward: inner, quantized inputs, totals."""
    images, tokens, width = qkv.shape
    out = qkv.new_empty(images, tokens, width // 3)
    quantized = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    return out, torch.empty_like(out), quantized, q_scale.new_empty(images, heads, tokens)


@torch.library.custom_op("ofq::attend", mutates_args=())
def _forward(
    qkv: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    p_scale: Tensor,
    q_after: Tensor,
    v_after: Tensor,
    heads: int,
    factor: float,
    low: int,
    high: int,
    highest: int,
    gradient_scales: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from ofq.quantization.kernels.triton import attention as kernels

    images, tokens, _ = qkv.shape
    sizes = _sizes(qkv, heads)
    inputs = q_scale, k_scale, v_scale, q_after, v_after
    outputs = _outputs(qkv, q_scale, k_scale, v_scale, p_scale, q_after, v_after, heads)
    out, inner, quantized, totals = outputs
    launch(
        kernels.quantize_qkv,
        (images, sizes["BLOCKS"], 3 * heads),
        qkv.contiguous(),
        *inputs,
        quantized,
        *(tokens, low, high),
        HEADS=heads,
        CHANNELS=sizes["CHANNELS"],
        TOKENS=_TILE,
    )
    launch(
        kernels.attend,
        (images * heads, sizes["BLOCKS"]),
        *(quantized, p_scale, out, inner, totals),
        *(tokens, factor, highest),
        **sizes,
        num_stages=_STAGES,
    )
    return outputs


def _gradients(
    upstream: Tensor,
    qkv: Tensor,
    out: Tensor,
    inner: Tensor,
    quantized: Tensor,
    totals: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate gradients: of inputs; of parameters, one for each program, to be summed.

    Per row are the scales of probabilities, queries and keys; per column the shift after queries,
    the scales of values and the shift after values.
    """
    images, tokens, width = qkv.shape
    of_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    of_rows = totals.new_empty(3, images * totals.shape[1], tokens)
    of_columns = totals.new_empty(3, blocks_of(tokens, _TILE) * images, width // 3)
    return of_qkv, of_rows, of_columns


@torch.library.custom_op("ofq::attend_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    qkv: Tensor,
    out: Tensor,
    inner: Tensor,
    quantized: Tensor,
    totals: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    p_scale: Tensor,
    heads: int,
    factor: float,
    low: int,
    high: int,
    highest: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from ofq.quantization.kernels.triton import attention as kernels

    qkv, upstream = qkv.contiguous(), upstream.contiguous()
    images, tokens, _ = qkv.shape
    gradients = _gradients(upstream, qkv, out, inner, quantized, totals)
    commons = torch.empty_like(totals)
    sizes = _sizes(qkv, heads)
    grid = images * heads, sizes["BLOCKS"]
    numbers = images * heads, tokens, factor, low, high, highest
    launch(
        kernels.attend_backward_queries,
        grid,
        *(upstream, qkv, quantized, out, inner, totals, q_scale, p_scale),
        *(*gradients, commons),
        *numbers,
        **sizes,
        num_stages=_STAGES,
    )
    launch(
        kernels.attend_backward_keys,
        grid,
        *(upstream, qkv, quantized, totals, commons, k_scale, v_scale, p_scale),
        *gradients,
        *numbers,
        **sizes,
        **_KEY_OPTIONS,
    )
    return gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], *output, *inputs[1:5])
    ctx.rest = inputs[7:-1]
    ctx.gradient_scales = inputs[-1]


def _of_inputs(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    of_qkv, of_rows, of_columns = _backward(upstream, *ctx.saved_tensors, *ctx.rest)
    of_rows, of_columns = of_rows.sum(1), of_columns.sum(1)
    of_q, of_k, of_v, of_p = ctx.gradient_scales
    gradients = (
        of_qkv,
        of_rows[1] * of_q,
        of_rows[2] * of_k,
        of_columns[1] * of_v,
        of_rows[0] * of_p,
        of_columns[0],
        of_columns[2],
    )
    return *gradients, None, None, None, None, None, None


_forward.register_fake(_outputs)
_forward.register_autograd(_of_inputs, setup_context=_keep)
_backward.register_fake(_gradients)
