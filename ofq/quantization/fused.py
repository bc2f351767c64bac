"""What a low-bit block computes in one kernel on a GPU, in half precision.

Each function is what others of the package compose (:mod:`ofq.quantization.attention`,
:class:`ofq.LSQ`), with the same gradients; sums and intermediate results are float32, some of which
autocast would round. :func:`fits` tells where they may be used. The kernels are Triton's
(:mod:`ofq.quantization.kernels`), which comes with PyTorch for CUDA.
"""

import math
from importlib.util import find_spec
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ofq.quantization.lsq import LSQ

_KINDS = (torch.bfloat16, torch.float16)
_CHANNELS = (16, 32, 64)  # of a head: what tensor cores take, and registers hold
# asked once: compiled code can't
_IS_THERE = torch.version.cuda is not None and find_spec("triton") is not None


def fits(x: Tensor) -> bool:
    """Whether an activation is of the kind that the kernels take: bf16 or fp16, on a GPU."""
    return x.is_cuda and x.dtype in _KINDS and _IS_THERE


def fits_attention(x: Tensor, channels: int) -> bool:
    """Whether the kernels take an activation of an attention with so many channels per head."""
    return fits(x) and channels in _CHANNELS


def ready(quantizer: nn.Module, axis: int) -> TypeGuard[LSQ]:
    """Whether a quantizer is an LSQ, not something in its place, and has its scales on an axis."""
    return type(quantizer) is LSQ and quantizer.axis == (axis,) and quantizer.scale.numel() > 0


def _scale(quantizer: LSQ, x: Tensor) -> Tensor:
    return quantizer.effective_scale(x).flatten()


def _like(x: Tensor) -> Tensor:
    return x.new_empty_strided(x.shape, x.stride())


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **options)


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


# GELU and LSQ

_POSITIONS, _COLUMNS, _IMAGES = 16, 64, 8


@torch.library.custom_op("ofq::gelu_lsq", mutates_args=())
def _gelu_lsq(
    x: Tensor, shift: Tensor, scale: Tensor, low: int, high: int, gradient_scale: float
) -> Tensor:
    from ofq.quantization import kernels

    x = x.contiguous()
    sizes = _gelu_sizes(x, scale)
    out = torch.empty_like(x)
    _launch(
        kernels.gelu_lsq,
        _gelu_grid(*sizes),
        x,
        shift,
        scale,
        out,
        *sizes,
        low,
        high,
        POSITIONS=_POSITIONS,
        COLUMNS=_COLUMNS,
        IMAGES=_IMAGES,
    )
    return out


def _gelu_sizes(x: Tensor, scale: Tensor) -> tuple[int, int, int]:
    """Images, positions and columns."""
    return x.numel() // x.shape[-1] // len(scale), len(scale), x.shape[-1]


def _gelu_grid(images: int, positions: int, columns: int) -> tuple[int, int, int]:
    parts = (positions, _POSITIONS), (columns, _COLUMNS), (images, _IMAGES)
    of_positions, of_columns, of_images = (_blocks(*part) for part in parts)
    return of_positions, of_columns, of_images


@_gelu_lsq.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("ofq::gelu_lsq_backward", mutates_args=())
def _gelu_lsq_backward(
    upstream: Tensor, x: Tensor, shift: Tensor, scale: Tensor, low: int, high: int
) -> tuple[Tensor, Tensor, Tensor]:
    from ofq.quantization import kernels

    x, upstream = x.contiguous(), upstream.contiguous()
    sizes = _gelu_sizes(x, scale)
    grid = _gelu_grid(*sizes)
    of_x = torch.empty_like(x)
    of_shift = scale.new_empty(grid[2] * grid[0], sizes[2])
    of_scale = scale.new_empty(grid[2] * grid[1], sizes[1])
    _launch(
        kernels.gelu_lsq_backward,
        grid,
        upstream,
        x,
        shift,
        scale,
        of_x,
        of_shift,
        of_scale,
        *sizes,
        low,
        high,
        POSITIONS=_POSITIONS,
        COLUMNS=_COLUMNS,
        IMAGES=_IMAGES,
    )
    return of_x, of_shift, of_scale


@_gelu_lsq_backward.register_fake
def _(
    upstream: Tensor, x: Tensor, shift: Tensor, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = _gelu_sizes(x, scale)
    grid = _gelu_grid(*sizes)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        scale.new_empty(grid[2] * grid[0], sizes[2]),
        scale.new_empty(grid[2] * grid[1], sizes[1]),
    )


def _keep_gelu_lsq(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    *ctx.range, ctx.gradient_scale = inputs[3:]


def _gelu_lsq_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_shift, of_scale = _gelu_lsq_backward(upstream, *ctx.saved_tensors, *ctx.range)
    of_scale = of_scale.sum(0) * ctx.gradient_scale
    return of_x, of_shift.sum(0), of_scale, None, None, None


_gelu_lsq.register_autograd(_gelu_lsq_gradients, setup_context=_keep_gelu_lsq)


def gelu_lsq(x: Tensor, shift: Tensor, quantizer: LSQ) -> Tensor:
    """LSQ(GELU(x) + shift), with a scale per position.

    Args:
        x: (..., N, C), for which :func:`fits` holds.
        shift: (C,).
        quantizer: A quantizer that is :func:`ready`, with a scale per position.
    """
    return _gelu_lsq(x, shift, _scale(quantizer, x), *quantizer.rounding(x.numel()))


# attention, of queries, keys and values that one layer gave

_TILE = 64  # queries or keys
_STAGES = 3
# registers for three programs at once on a Hopper's multiprocessor, though some spill
_KEY_OPTIONS = {"num_stages": 2, "maxnreg": 168}


@torch.library.custom_op("ofq::attend", mutates_args=())
def _attend(
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
    from ofq.quantization import kernels

    qkv = qkv.contiguous()
    images, tokens, width = qkv.shape
    channels, blocks = width // 3 // heads, _blocks(tokens, _TILE)
    quantized = torch.empty_like(qkv)
    _launch(
        kernels.quantize_qkv,
        (images, blocks, 3 * heads),
        qkv,
        q_scale,
        k_scale,
        v_scale,
        q_after,
        v_after,
        quantized,
        tokens,
        low,
        high,
        HEADS=heads,
        CHANNELS=channels,
        TOKENS=_TILE,
    )
    out = qkv.new_empty(images, tokens, width // 3)
    inner = torch.empty_like(out)
    totals = q_scale.new_empty(images, heads, tokens)
    _launch(
        kernels.attend,
        (images * heads, blocks),
        quantized,
        p_scale,
        out,
        inner,
        totals,
        tokens,
        factor,
        highest,
        HEADS=heads,
        CHANNELS=channels,
        TILE=_TILE,
        BLOCKS=blocks,
        num_stages=_STAGES,
    )
    return out, inner, quantized, totals


@_attend.register_fake
def _(qkv: Tensor, q_scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, tokens, width = qkv.shape
    heads = rest[5]
    out = qkv.new_empty(images, tokens, width // 3)
    quantized = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    return out, torch.empty_like(out), quantized, q_scale.new_empty(images, heads, tokens)


@torch.library.custom_op("ofq::attend_backward", mutates_args=())
def _attend_backward(
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
    from ofq.quantization import kernels

    qkv, upstream = qkv.contiguous(), upstream.contiguous()
    images, tokens, width = qkv.shape
    pairs, blocks, channels = images * heads, _blocks(tokens, _TILE), width // 3 // heads
    of_qkv = torch.empty_like(qkv)
    of_rows = q_scale.new_empty(3, pairs, tokens)  # scales of probabilities, queries and keys
    # the shift after queries, scales of values, the shift after values
    of_columns = q_scale.new_empty(3, blocks * images, width // 3)
    commons = torch.empty_like(totals)
    sizes = {"HEADS": heads, "CHANNELS": channels, "TILE": _TILE, "BLOCKS": blocks}
    _launch(
        kernels.attend_backward_queries,
        (pairs, blocks),
        upstream,
        qkv,
        quantized,
        out,
        inner,
        totals,
        q_scale,
        p_scale,
        of_qkv,
        of_rows,
        of_columns,
        commons,
        pairs,
        tokens,
        factor,
        low,
        high,
        highest,
        **sizes,
        num_stages=_STAGES,
    )
    _launch(
        kernels.attend_backward_keys,
        (pairs, blocks),
        upstream,
        qkv,
        quantized,
        totals,
        commons,
        k_scale,
        v_scale,
        p_scale,
        of_qkv,
        of_rows,
        of_columns,
        pairs,
        tokens,
        factor,
        low,
        high,
        highest,
        **sizes,
        **_KEY_OPTIONS,
    )
    return of_qkv, of_rows, of_columns


@_attend_backward.register_fake
def _(
    upstream: Tensor,
    qkv: Tensor,
    out: Tensor,
    inner: Tensor,
    quantized: Tensor,
    totals: Tensor,
    q_scale: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    images, tokens, width = qkv.shape
    heads = totals.shape[1]
    of_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    of_columns = q_scale.new_empty(3, _blocks(tokens, _TILE) * images, width // 3)
    return of_qkv, q_scale.new_empty(3, images * heads, tokens), of_columns


def _keep_attend(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], *output, *inputs[1:5])
    ctx.rest = inputs[7:-1]
    ctx.gradient_scales = inputs[-1]


def _attend_gradients(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    of_qkv, of_rows, of_columns = _attend_backward(upstream, *ctx.saved_tensors, *ctx.rest)
    of_rows, of_columns = of_rows.sum(1), of_columns.sum(1)
    of_q, of_k, of_v, of_p = ctx.gradient_scales
    found = (
        of_qkv,
        of_rows[1] * of_q,
        of_rows[2] * of_k,
        of_columns[1] * of_v,
        of_rows[0] * of_p,
        of_columns[0],
        of_columns[2],
    )
    return *found, None, None, None, None, None, None


_attend.register_autograd(_attend_gradients, setup_context=_keep_attend)


def attend(
    qkv: Tensor,
    quantizers: tuple[LSQ, LSQ, LSQ, LSQ],
    afters: tuple[Tensor, Tensor],
    heads: int,
    factor: float,
) -> Tensor:
    """LSQ(softmax(factor · Q̂ K̂ᵀ)) V̂ of every head, with Q̂ = LSQ(Q) + after, K̂ = LSQ(K), V̂ as Q̂.

    Args:
        qkv: (B, N, 3C), for which :func:`fits_attention` holds.
        quantizers: Of queries, keys, values and probabilities, all :func:`ready`; the first three
            have the same codes.
        afters: The shifts after the quantizers of queries and values, (C,) each.
        heads: H.
        factor: On the logits.

    Returns:
        (B, N, C).
    """
    images, tokens, _ = qkv.shape
    part = qkv.chunk(3, -1)[0]
    *_, p = quantizers
    roundings = [quantizer.rounding(part.numel()) for quantizer in quantizers[:3]]
    roundings.append(p.rounding(images * heads * tokens**2))
    scales = [_scale(quantizer, part) for quantizer in quantizers]
    low, high, _ = roundings[0]
    gradient_scales = [rounding.gradient_scale for rounding in roundings]
    return _attend(qkv, *scales, *afters, heads, factor, low, high, p.range[1], gradient_scales)[0]


# attention, of logits that are there


def _vector(logits: Tensor) -> int:
    """How many entries at a time all rows can be read by, at most 8: 16 bytes."""
    return math.gcd(8, logits.shape[-1], *logits.stride()[:3])


@torch.library.custom_op("ofq::attend_logits", mutates_args=())
def _attend_logits(
    logits: Tensor,
    values: Tensor,
    p_scale: Tensor,
    factor: float,
    highest: int,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from ofq.quantization import kernels

    images, heads, tokens, channels = values.shape
    blocks, vector = _blocks(tokens, _TILE), _vector(logits)
    out = values.new_empty(images, tokens, heads * channels)
    inner = torch.empty_like(out)
    totals = p_scale.new_empty(images, heads, tokens)
    _launch(
        kernels.attend_logits,
        (images * heads, blocks),
        logits,
        values,
        p_scale,
        out,
        inner,
        totals,
        heads,
        tokens,
        logits.shape[-1] // vector,
        factor,
        highest,
        *(stride // vector for stride in logits.stride()[:3]),
        *values.stride()[:3],
        CHANNELS=channels,
        TILE=_TILE,
        BLOCKS=blocks,
        VECTOR=vector,
        num_stages=1,
    )
    return out, inner, totals


@_attend_logits.register_fake
def _(logits: Tensor, values: Tensor, p_scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    images, heads, tokens, channels = values.shape
    out = values.new_empty(images, tokens, heads * channels)
    return out, torch.empty_like(out), p_scale.new_empty(images, heads, tokens)


@torch.library.custom_op("ofq::attend_logits_backward", mutates_args=())
def _attend_logits_backward(
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
    from ofq.quantization import kernels

    images, heads, tokens, channels = values.shape
    # blocks of keys that reach into the padding, whose gradients are 0
    blocks, vector = _blocks(logits.shape[-1], _TILE), _vector(logits)
    of_logits, of_values = _like(logits), _like(values)
    of_rows = p_scale.new_empty(images * heads, tokens)
    _launch(
        kernels.attend_logits_backward,
        (images * heads, blocks),
        upstream.contiguous(),
        logits,
        values,
        out,
        inner,
        totals,
        p_scale,
        of_logits,
        of_values,
        of_rows,
        heads,
        tokens,
        logits.shape[-1] // vector,
        factor,
        highest,
        *(stride // vector for stride in logits.stride()[:3]),
        *values.stride()[:3],
        CHANNELS=channels,
        TILE=_TILE,
        BLOCKS=_blocks(tokens, _TILE),
        VECTOR=vector,
        num_stages=_STAGES,
    )
    return of_logits, of_values, of_rows


@_attend_logits_backward.register_fake
def _(
    upstream: Tensor,
    logits: Tensor,
    values: Tensor,
    out: Tensor,
    inner: Tensor,
    totals: Tensor,
    p_scale: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    images, heads, tokens, _ = values.shape
    return _like(logits), _like(values), p_scale.new_empty(images * heads, tokens)


def _keep_attend_logits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:2], *output, inputs[2])
    *ctx.rest, ctx.gradient_scale = inputs[3:]


def _attend_logits_gradients(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    found = _attend_logits_backward(upstream, *ctx.saved_tensors, *ctx.rest)
    of_logits, of_values, of_rows = found
    return of_logits, of_values, of_rows.sum(0) * ctx.gradient_scale, None, None, None


_attend_logits.register_autograd(_attend_logits_gradients, setup_context=_keep_attend_logits)


def attend_logits(logits: Tensor, values: Tensor, quantizer: LSQ, factor: float) -> Tensor:
    """LSQ(softmax(factor · logits)) V̂ of every head.

    Args:
        logits: (B, H, N, M), M ≥ N, for which :func:`fits_attention` holds; the last M − N columns
            are padding.
        values: (B, H, N, d), of the same kind.
        quantizer: Of the probabilities, :func:`ready`.
        factor: On the logits.

    Returns:
        (B, N, H·d).
    """
    _, high, gradient_scale = quantizer.rounding(logits[..., : values.shape[-2]].numel())
    scale = _scale(quantizer, logits)
    return _attend_logits(logits, values, scale, factor, high, gradient_scale)[0]
