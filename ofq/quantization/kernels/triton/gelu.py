# mypy: disable-error-code="no-untyped-def"
"""Kernels of GELU before an LSQ."""

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
    """See :func:`ofq.quantization.kernels.gelu_lsq`."""
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known, there = position < positions, column < columns
    step = tl.load(scale + position, known, 1.0)[:, None]
    moved = tl.load(shift + column, there, 0.0)[None, :]
    place = position[:, None] * columns + column[None, :]
    for index in range(IMAGES):
        image = tl.program_id(2) * IMAGES + index
        start = image.to(tl.int64) * positions * columns
        within = known[:, None] & there[None, :] & (image < images)
        given = tl.load(x + start + place, within, 0.0)
        wide = given.to(tl.float32)
        share, _ = normal(wide)
        activated = (wide * share).to(given.dtype).to(tl.float32) + moved
        found = lsq(activated, step, low, high)
        tl.store(out + start + place, found.to(given.dtype), within)


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
    """Its gradients; those of shift and scale as sums of each program."""
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known, there = position < positions, column < columns
    step = tl.load(scale + position, known, 1.0)[:, None]
    moved = tl.load(shift + column, there, 0.0)[None, :]
    place = position[:, None] * columns + column[None, :]
    total = tl.zeros([POSITIONS, COLUMNS], tl.float32)
    slopes = tl.zeros([POSITIONS, COLUMNS], tl.float32)
    for index in range(IMAGES):
        image = tl.program_id(2) * IMAGES + index
        start = image.to(tl.int64) * positions * columns
        within = known[:, None] & there[None, :] & (image < images)
        given = tl.load(x + start + place, within, 0.0)
        gradient = tl.load(upstream + start + place, within, 0.0).to(tl.float32)
        wide = given.to(tl.float32)
        share, density = normal(wide)
        activated = (wide * share).to(given.dtype).to(tl.float32) + moved
        inside, slope = lsq_gradients(gradient, activated, step, low, high)
        total += inside
        slopes += slope
        found = inside * (share + wide * density)
        tl.store(of_x + start + place, found.to(given.dtype), within)
    group = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    tl.store(of_shift + group * columns + column, tl.sum(total, 0), there)
    group = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    tl.store(of_scale + group * positions + position, tl.sum(slopes, 1), known)
