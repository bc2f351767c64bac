"""The quantizers' definitions in plain NumPy, float64, written from the equations alone."""

import numpy as np


def statsq(w, bits):
    """StatsQ's scales, codes and values, row by row."""
    w = np.asarray(w, np.float64)
    n = 2 ** (bits - 1)
    scale = 2 * np.abs(w).mean(-1, keepdims=True)
    v = np.clip(w / scale, -1, 1 - 1e-6)
    code = np.rint(v * n - 0.5)
    return scale, code, scale * (code + 0.5) / n


def lsq(x, scale, bits, signed):
    """LSQ's values and codes for scales that broadcast."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scale = np.maximum(np.asarray(scale, np.float64), 1e-5)
    code = np.rint(np.clip(np.asarray(x, np.float64) / scale, low, high))
    return code * scale, code


def lsq_gradients(x, scale, grad, bits, signed, axes):
    """dL/dx and dL/ds; ``axes`` are the dimensions that have a scale each."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    x, grad = np.asarray(x, np.float64), np.asarray(grad, np.float64)
    scale = np.maximum(np.asarray(scale, np.float64), 1e-5)
    u = x / scale
    inside = (u >= low) & (u <= high)
    slope = np.where(inside, np.rint(u) - u, np.clip(u, low, high))
    others = tuple(d for d in range(x.ndim) if d not in [a % x.ndim for a in axes])
    count = np.prod([x.shape[d] for d in others])
    g = 1 / np.sqrt(high * count)
    return grad * inside, g * (grad * slope).sum(others, keepdims=True)


def near_threshold(position, boundary_range, bits):
    """Mask by a loop over thresholds, as the definition has it."""
    n = 2 ** (bits - 1)
    mask = np.zeros(np.shape(position), bool)
    for code in range(-n, n - 1):
        mask |= np.abs(np.asarray(position, np.float64) - (code + 0.5)) <= boundary_range
    return mask
