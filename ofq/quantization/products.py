"""Products in a transformer that have a quantized operand, with their gradients.

Shapes: B batch, N tokens, H heads, d channels per head, C = H·d. Rows of logits and probabilities
have M ≥ N columns: N keys, and on a GPU padding to a multiple of the vector size, since tensor
cores take about three times as long for a matrix of 197 columns as for one of 200.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_VECTORS = {"cuda": 8}  # entries per vector load, of devices where alignment matters


def column_sums(rows: Tensor) -> Tensor:
    """Sum over all rows: (rows, columns) give (columns,).

    On the CPU as a matrix product, which compiled code leaves to the matrix library: its own loop
    would run down one column after another and recompute the rows for each. On a GPU the library is
    the slower one.
    """
    if rows.is_cuda:
        return rows.sum(0, dtype=torch.float32)
    return (rows.new_ones(1, len(rows)) @ rows)[0]


def _padded(x: Tensor, dimension: int) -> Tensor:
    """Pad a dimension with zeros to a multiple of the device's vector size."""
    missing = -x.shape[dimension] % _VECTORS.get(x.device.type, 1)
    return _with_zeros(x, dimension, missing) if missing else x


def _with_zeros(x: Tensor, dimension: int, count: int) -> Tensor:
    after = x.ndim - 1 - dimension % x.ndim
    return F.pad(x, (0, 0) * after + (0, count))


def padded_like(summand: Tensor, logits: Tensor) -> Tensor:
    """Pad a summand of logits (..., N) with zeros to their M columns."""
    missing = logits.shape[-1] - summand.shape[-1]
    return _with_zeros(summand, -1, missing) if missing else summand


def without_padding(logits: Tensor, keys: int) -> Tensor:
    """Set the padding of logits (..., M) to −∞, so that softmax gives 0 there."""
    if logits.shape[-1] == keys:
        return logits
    padding = torch.arange(logits.shape[-1], device=logits.device) >= keys
    return logits.masked_fill(padding, -torch.inf)


def separate_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """Compute Q Kᵀ: (B, H, N, d) and (B, H, N, d) give (B, H, N, M)."""
    return queries @ _padded(keys, -2).transpose(-2, -1)


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        return x + shift

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        return upstream, column_sums(upstream.flatten(0, -2))


def shift_channels(x: Tensor, shift: Tensor) -> Tensor:
    """Add a shift (C,) to an activation (..., C)."""
    return _Shift.apply(x, shift)


class Product(Protocol):
    """Product of a quantized operand x̂ with other tensors, and its gradients."""

    @staticmethod
    def operand(x: Tensor, *others: Any) -> Tensor:
        """Return ``x`` without its padded columns; scales are initialized from it."""
        return x

    @staticmethod
    def forward(x: Tensor, *others: Any) -> Tensor:
        """Return the product of x̂ with the others."""

    @staticmethod
    def gradients(upstream: Tensor, x: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of x̂ and of each of the others."""


class Linear(Product):
    """Linear map x̂ Wᵀ + bias: (..., in), (out, in) and (out,) or None give (..., out)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x̂ Wᵀ + bias."""
        return F.linear(x, weight, bias)

    @staticmethod
    def gradients(
        upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x̂, weight and bias."""
        flat = upstream.flatten(0, -2)
        return (
            upstream @ weight,
            flat.T @ x.flatten(0, -2),
            None if bias is None else column_sums(flat),
        )


class Values(Product):
    """Attention P̂ V: probabilities (B, H, N, M) and values (B, H, N, d) give (B, H, N, d)."""

    @staticmethod
    def operand(x: Tensor, values: Tensor) -> Tensor:
        """Return the probabilities without padding."""
        return x[..., : values.shape[-2]]

    @staticmethod
    def forward(x: Tensor, values: Tensor) -> Tensor:
        """Return P̂ V."""
        return x @ _padded(values, -2)

    @staticmethod
    def gradients(upstream: Tensor, x: Tensor, values: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of probabilities and values."""
        of_values = x.transpose(-2, -1) @ upstream
        return (
            upstream @ _padded(values, -2).transpose(-2, -1),
            of_values[..., : values.shape[-2], :],
        )


class MergedLogits(Product):
    """QKR's logits X Ẑᵀ: ẑ (B, N, H, C) and the tokens x (B, N, C) give (B, H, N, M)."""

    @staticmethod
    def forward(z: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits X Ẑᵀ."""
        # heads and keys in one dimension: one product per image, without a copy of x for each
        # head, and the keys that softmax runs over are contiguous
        merged = _padded(z, 1).transpose(1, 2).flatten(1, 2)
        logits_BNHM = (tokens @ merged.transpose(1, 2)).unflatten(-1, (z.shape[2], -1))
        return logits_BNHM.transpose(1, 2)

    @staticmethod
    def gradients(upstream: Tensor, z: Tensor, tokens: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ẑ and tokens."""
        upstream = upstream.transpose(1, 2).flatten(2)
        merged = _padded(z, 1).transpose(1, 2).flatten(1, 2)
        of_merged = upstream.transpose(1, 2) @ tokens
        of_z = of_merged.unflatten(1, (z.shape[2], -1))[:, :, : z.shape[1]].transpose(1, 2)
        return of_z.contiguous(), upstream @ merged
