"""The products of a transformer that have a quantized operand, with their gradients.

Shapes: B batch, N tokens, H heads, d channels per head, C = H·d.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


def column_sums(rows: Tensor) -> Tensor:
    """Sums over all rows: (rows, columns) give (columns,).

    As a product, which compiled code leaves to the matrix library: its own loops run down one
    column after another, and fuse into them, again and again, what the rows are computed from.
    """
    return (rows.new_ones(1, len(rows)) @ rows)[0]


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        return x + shift

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        return upstream, column_sums(upstream.flatten(0, -2))


def shift_channels(x: Tensor, shift: Tensor) -> Tensor:
    """The sum of an activation (..., C) and a shift (C,)."""
    return _Shift.apply(x, shift)


class Product(Protocol):
    """A product of a quantized operand x̂ with other tensors, and its gradients."""

    @staticmethod
    def forward(x: Tensor, *others: Any) -> Tensor:
        """The product of x̂ with the others."""

    @staticmethod
    def gradients(upstream: Tensor, x: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        """The gradients of x̂ and of each of the others."""


class Linear:
    """x̂ Wᵀ + bias: (..., in), (out, in) and (out,) or None give (..., out)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :class:`Product`."""
        return F.linear(x, weight, bias)

    @staticmethod
    def gradients(
        upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """See :class:`Product`."""
        flat = upstream.flatten(0, -2)
        return (
            upstream @ weight,
            flat.T @ x.flatten(0, -2),
            None if bias is None else column_sums(flat),
        )


class Values:
    """P̂ V: attention probabilities (B, H, N, N) and values (B, H, N, d) give (B, H, N, d)."""

    @staticmethod
    def forward(x: Tensor, values: Tensor) -> Tensor:
        """See :class:`Product`."""
        return x @ values

    @staticmethod
    def gradients(upstream: Tensor, x: Tensor, values: Tensor) -> tuple[Tensor | None, ...]:
        """See :class:`Product`."""
        return upstream @ values.transpose(-2, -1), x.transpose(-2, -1) @ upstream


class MergedLogits:
    """QKR's logits X Ẑᵀ: ẑ (B, N, H, C) and the tokens x (B, N, C) give (B, H, N, N)."""

    @staticmethod
    def forward(z: Tensor, tokens: Tensor) -> Tensor:
        """See :class:`Product`."""
        # heads and keys side by side: one product per image, without a copy of x for each head,
        # and the keys that softmax runs over next to each other
        merged = z.transpose(1, 2).flatten(1, 2)
        logits_BNHM = (tokens @ merged.transpose(1, 2)).unflatten(-1, (z.shape[2], z.shape[1]))
        return logits_BNHM.transpose(1, 2)

    @staticmethod
    def gradients(upstream: Tensor, z: Tensor, tokens: Tensor) -> tuple[Tensor | None, ...]:
        """See :class:`Product`."""
        upstream = upstream.transpose(1, 2).flatten(2)
        merged = z.transpose(1, 2).flatten(1, 2)
        of_merged = upstream.transpose(1, 2) @ tokens
        of_z = of_merged.unflatten(1, (z.shape[2], -1)).transpose(1, 2).contiguous()
        return of_z, upstream @ merged
