# mypy: disable-error-code="no-untyped-def"
"""Kernels of GELU fused with the LSQ behind it."""

import triton
import triton.language as tl

from ofq.quantization.kernels.triton.arithmetic import lsq, lsq_gradients, normal


@triton.jit
def gelu_lsq(
    x,
    shift,
    scale,
    out,
    images,
    positions,
    columns,
    low,
    high,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Compute :func:`ofq.quantization.kernels.gelu_lsq`."""
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    position_mask, column_mask = position < positions, column < columns
    step = tl.load(scale + position, position_mask, 1.0)[:, None]
    offset = tl.load(shift + column, column_mask, 0.0)[None, :]
    place = position[:, None] * columns + column[None, :]
    for index in range(IMAGES):
        image = tl.program_id(2) * IMAGES + index
        start = image.to(tl.int64) * positions * columns
        mask = position_mask[:, None] & column_mask[None, :] & (image < images)
        entries = tl.load(x + start + place, mask, 0.0)
        wide = entries.to(tl.float32)
        share, _ = normal(wide)
        activated = (wide * share).to(entries.dtype).to(tl.float32) + offset
        result = lsq(activated, step, low, high)
        tl.store(out + start + place, result.to(entries.dtype), mask)


@triton.jit
def gelu_lsq_backward(
    upstream,
    x,
    shift,
    scale,
    of_x,
    of_shift,
    of_scale,
    images,
    positions,
    columns,
    low,
    high,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Compute the gradients of :func:`gelu_lsq`; of shift and scale, partial sums per program."""
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    position_mask, column_mask = position < positions, column < columns
    step = tl.load(scale + position, position_mask, 1.0)[:, None]
    offset = tl.load(shift + column, column_mask, 0.0)[None, :]
    place = position[:, None] * columns + column[None, :]
    total = tl.zeros([POSITIONS, COLUMNS], tl.float32)
    slopes = tl.zeros([POSITIONS, COLUMNS], tl.float32)
    for index in range(IMAGES):
        image = tl.program_id(2) * IMAGES + index
        start = image.to(tl.int64) * positions * columns
        mask = position_mask[:, None] & column_mask[None, :] & (image < images)
        entries = tl.load(x + start + place, mask, 0.0)
        gradient = tl.load(upstream + start + place, mask, 0.0).to(tl.float32)
        wide = entries.to(tl.float32)
        share, density = normal(wide)
        activated = (wide * share).to(entries.dtype).to(tl.float32) + offset
        inside, slope = lsq_gradients(gradient, activated, step, low, high)
        total += inside
        slopes += slope
        result = inside * (share + wide * density)
        tl.store(of_x + start + place, result.to(entries.dtype), mask)
    group = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    tl.store(of_shift + group * columns + column, tl.sum(total, 0), column_mask)
    group = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    tl.store(of_scale + group * positions + position, tl.sum(slopes, 1), position_mask)
