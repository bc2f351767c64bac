"""The products of a transformer that have a quantized operand, with their gradients.

Shapes: B batch, N tokens, H heads, d channels per head, C = H·d.
"""

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor


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
            None if bias is None else flat.sum(0),
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
        # keys and heads side by side: one product per image, without a copy of x for each head
        logits_BNMH = (tokens @ z.flatten(1, 2).transpose(1, 2)).unflatten(-1, z.shape[1:3])
        return logits_BNMH.permute(0, 3, 1, 2)

    @staticmethod
    def gradients(upstream: Tensor, z: Tensor, tokens: Tensor) -> tuple[Tensor | None, ...]:
        """See :class:`Product`."""
        upstream = upstream.permute(0, 2, 3, 1).flatten(2)
        of_z = upstream.transpose(1, 2) @ tokens
        return of_z.view_as(z), upstream @ z.flatten(1, 2)
