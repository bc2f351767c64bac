# mypy: disable-error-code="no-untyped-def"
"""Arithmetic on tiles that several kernels share, in float32."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

# Triton's interpreter, with which tests run the kernels on a CPU, has no inline assembly
_ASSEMBLER = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def exp2(x):
    """Compute 2ˣ, with 0 in place of subnormal results, which the kernels treat as 0 anyway."""
    if _ASSEMBLER:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal(x):
    """Compute 1/x of normal numbers."""
    if _ASSEMBLER:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def clamp(x, low, high):
    """Clamp to bounds; NaN stays NaN, so that the trainer's check of the loss detects it."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def nearest(x):
    """Round to the nearest integer, half to even, for magnitudes below 2²²."""
    return (x + 12582912.0) - 12582912.0  # 1.5·2²³, where float32 has no bits for a fraction


@triton.jit
def lsq(x, scale, low, high):
    """Quantize x by LSQ, with one division per scale instead of per element."""
    return nearest(clamp(x * (1.0 / scale), low, high)) * scale


@triton.jit
def lsq_gradients(upstream, x, scale, low, high):
    """Compute the gradient of x, and the summands of the scale's (``Rounding.gradients``)."""
    ratio = x * (1.0 / scale)
    clamped = clamp(ratio, low, high)
    inside = tl.where(clamped == ratio, upstream, 0.0)
    return inside, nearest(clamped) * upstream - inside * clamped


@triton.jit
def normal(x):
    """Compute the distribution function and density of the standard normal distribution.

    By Abramowitz and Stegun 7.1.26, within 1e-7; its exponential is shared with the density.
    """
    power = exp2(x * x * -0.7213475204444817)
    t = reciprocal(1.0 + 0.23164189 * tl.abs(x))
    series = 0.5307027145 * t - 0.7265760135
    series = series * t + 0.7107068705
    series = series * t - 0.142248368
    series = series * t + 0.127414796
    tail = series * t * power
    return tl.where(x < 0, tail, 1.0 - tail), power * 0.3989422804014327


@triton.jit
def probabilities(logits, total, step, highest_code):
    """Compute probabilities and their codes."""
    p = exp2(logits - total)
    return p, nearest(clamp(p * (1.0 / step), 0.0, highest_code))


@triton.jit
def update_sums(logits, highest, sums):
    """Update each row's maximum, and its sum of powers of 2 relative to it, with more logits."""
    now = tl.maximum(highest, tl.max(logits, 1))
    base = tl.where(now == float("-inf"), 0.0, now)  # while all logits of the row are masked
    powers = tl.sum(exp2(logits - base[:, None]), 1)
    return now, sums * exp2(highest - base) + powers
