"""Quantized attention, with separate query and key weights or reparameterized as one (QKR).

Shapes: B batch (for Swin: batch × windows), N tokens, H heads, d channels per head, C = H·d; M
columns of logits: N keys and possibly padding (:mod:`ofq.quantization.products`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofq.quantization import kernels as fused
from ofq.quantization.activations import ActivationQuantizer
from ofq.quantization.kernels import fitting
from ofq.quantization.layers import (
    HasQuantizedWeight,
    Passthrough,
    PreShifted,
    QuantizedLinear,
    Shifted,
    own_parameter,
)
from ofq.quantization.products import (
    MergedLogits,
    Values,
    padded_like,
    separate_logits,
    without_padding,
)
from ofq.quantization.quantizers.base import WeightQuantizer


class AttentionLogits(nn.Module):
    """Base class of modules that compute the logits and values of an attention.

    Maps tokens (B, N, C) to unscaled logits (B, H, N, M) and values (B, H, N, d).
    """

    def attended(
        self,
        x: Tensor,
        scale: float,
        probability_quantizer: Passthrough | ActivationQuantizer,
        mask: Tensor | None,
    ) -> Tensor:
        """Return the values of each head, weighted by quantized attention probabilities: (B, N, C).

        Args:
            x: Tokens (B, N, C).
            scale: Factor on the logits.
            probability_quantizer: Quantizer of the attention probabilities.
            mask: Added to the logits; broadcasts against (B, H, N, N).
        """
        logits, v = self(x)
        return attend(logits, v, probability_quantizer, scale, mask)


def attend(
    logits: Tensor,
    v: Tensor,
    probability_quantizer: Passthrough | ActivationQuantizer,
    scale: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Multiply quantized softmax of logits (B, H, N, M) by values (B, H, N, d): (B, N, H·d)."""
    tokens, channels = v.shape[-2:]
    if mask is not None:
        logits, scale = logits * scale + padded_like(mask, logits), 1.0
    if fitting.fits_attention(logits, channels) and fitting.ready(probability_quantizer, axis=-2):
        return fused.attend_logits(logits, v.to(logits.dtype), probability_quantizer, scale)
    if scale != 1.0:
        logits = logits * scale
    probabilities = without_padding(logits, keys=tokens).softmax(-1)
    attended = probability_quantizer.product(Values, probabilities, v)
    return attended.transpose(1, 2).flatten(2)


class SeparateLogits(AttentionLogits):
    """Logits and values from one quantized qkv layer; query and key are quantized separately.

    Args:
        qkv: Linear layer C → 3C.
        q_quantizer, k_quantizer: Activation quantizers with a scale per token.
        v_quantizer: Activation quantizer with a scale per channel.
        heads: H.
    """

    def __init__(
        self,
        qkv: QuantizedLinear,
        q_quantizer: Passthrough,
        k_quantizer: Passthrough,
        v_quantizer: Passthrough,
        heads: int,
    ) -> None:
        super().__init__()
        self.qkv = qkv
        self.q_quantizer = q_quantizer
        self.k_quantizer = k_quantizer
        self.v_quantizer = v_quantizer
        self.heads = heads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (B, N, C) to unscaled logits (B, H, N, M) and values (B, H, N, d)."""
        return self._split(self.qkv(x, self._quantizers))

    @property
    def _quantizers(self) -> tuple[Passthrough, Passthrough, Passthrough]:
        return self.q_quantizer, self.k_quantizer, self.v_quantizer

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        q_BHNd, k_BHNd, v_BHNd = (
            split_heads(quantizer.shifted(part), self.heads)
            for quantizer, part in zip(self._quantizers, qkv.chunk(3, dim=-1), strict=True)
        )
        return separate_logits(q_BHNd, k_BHNd), v_BHNd

    def attended(
        self,
        x: Tensor,
        scale: float,
        probability_quantizer: Passthrough | ActivationQuantizer,
        mask: Tensor | None,
    ) -> Tensor:
        """Compute the result by the fused kernel where it fits, else by separate operations."""
        qkv = self.qkv(x, self._quantizers)
        q, k, v = self._quantizers
        if (
            mask is None
            and fitting.fits_attention(qkv, channels=qkv.shape[-1] // 3 // self.heads)
            and isinstance(q, Shifted)
            and isinstance(k, PreShifted)
            and isinstance(v, Shifted)
            and fitting.ready(q.quantizer, axis=-2)
            and fitting.ready(k.quantizer, axis=-2)
            and fitting.ready(v.quantizer, axis=-1)
            and fitting.ready(probability_quantizer, axis=-2)
        ):
            quantizers = (q.quantizer, k.quantizer, v.quantizer, probability_quantizer)
            return fused.attend(qkv, quantizers, (q.after, v.after), self.heads, scale)
        logits, values = self._split(qkv)
        return attend(logits, values, probability_quantizer, scale, mask)


def merge(q_weight: Tensor, k_weight: Tensor, heads: int) -> Tensor:
    """Compute W_q[h]ᵀ W_k[h] of every head, stacked: two (C, C) weights give (H·C, C)."""
    q_HdC = q_weight.unflatten(0, (heads, -1))
    k_HdC = k_weight.unflatten(0, (heads, -1))
    # in float32 even under autocast, so that codes are the same on every device
    device = q_weight.device.type
    with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # meta has none
        return (q_HdC.transpose(1, 2).float() @ k_HdC.float()).flatten(0, 1)


class MergedQueryKey(nn.Module, HasQuantizedWeight):
    """Merged query-key weight of every head, quantized per row.

    One quantizer replaces two, so oscillations of query and key no longer influence each other. A
    row is one (head, channel) pair. Gradients reach W_q and W_k through the product.

    Args:
        q_weight, k_weight: Weights of the full-precision model, each (C, C); copied, with their
            ``requires_grad``.
        weight_quantizer: Quantizer of the (H·C, C) product.
        heads: H.

    Attributes:
        gradient_mask: Set during CGA: maps positions on the quantization grid to a mask of the
            entries of the product that pass a gradient to W_q and W_k.
    """

    def __init__(
        self, q_weight: Tensor, k_weight: Tensor, weight_quantizer: nn.Module, heads: int
    ) -> None:
        super().__init__()
        self.q_weight = own_parameter(q_weight)
        self.k_weight = own_parameter(k_weight)
        self.weight_quantizer = weight_quantizer
        self.heads = heads
        self.roles = {"qk": slice(0, heads * q_weight.shape[1])}
        self.gradient_mask: Callable[[Tensor], Tensor] | None = None

    def latent_weight(self) -> Tensor:
        """Return the product of W_q and W_k, (H·C, C)."""
        return merge(self.q_weight, self.k_weight, self.heads)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, C) to W_qk[h] x + bias of every head, (B, N, H, C)."""
        weight = self.latent_weight()
        if self.gradient_mask is not None:
            assert isinstance(self.weight_quantizer, WeightQuantizer)
            mask = self.gradient_mask(self.weight_quantizer.position(weight))
            weight = torch.where(mask, weight, weight.detach())
        z = F.linear(x, self.weight_quantizer(weight), bias)
        return z.unflatten(-1, (self.heads, -1))


class FixedQueryKey(nn.Module):
    """Merged query-key weight that is already quantized, without W_q and W_k.

    Args:
        weight: The quantized product, (H·C, C).
        heads: H.
    """

    def __init__(self, weight: Tensor, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.heads = heads

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, C) to W_qk[h] x + bias of every head, (B, N, H, C)."""
        return F.linear(x, self.weight, bias).unflatten(-1, (self.heads, -1))


class QKRLogits(AttentionLogits):
    """Logits and values with query-key reparameterization (paper, section on QKR).

    x̂ = LSQ(x) is shared; z[m, h] = LSQ(W_qk[h] x̂_m) with a scale per (token, head); the logit of
    query n and key m is x̂_n · z[m, h]. The full-precision model's query and key biases are
    dropped.

    Args:
        input_quantizer: Activation quantizer of x.
        merged: The merged query-key weight.
        z_quantizer: Activation quantizer of z, (B, N, H, C).
        v: Linear layer of the values, without an input quantizer.
        v_quantizer: Activation quantizer with a scale per channel.
    """

    def __init__(
        self,
        input_quantizer: Passthrough,
        merged: MergedQueryKey | FixedQueryKey,
        z_quantizer: Passthrough,
        v: QuantizedLinear,
        v_quantizer: Passthrough,
    ) -> None:
        super().__init__()
        self.input_quantizer = input_quantizer
        self.merged = merged
        self.z_quantizer = z_quantizer
        self.v = v
        self.v_quantizer = v_quantizer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (B, N, C) to unscaled logits (B, H, N, M) and values (B, H, N, d)."""
        x = self.input_quantizer(x)
        z_BNHC = self.merged(x, self.z_quantizer.before)
        logits = self.z_quantizer.product(MergedLogits, z_BNHC, x)
        v = self.v_quantizer.shifted(self.v(x, [self.v_quantizer]))
        return logits, split_heads(v, self.merged.heads)


class QuantizedAttention(nn.Module):
    """Multi-head attention with quantized operands; softmax stays in floating point.

    Args:
        scores: Computes logits and values.
        probability_quantizer: Unsigned quantizer of the attention probabilities, a scale per query.
        proj: Output layer.
        proj_drop: Dropout behind it, taken from the original layer.
        scale: Factor on the logits, 1/√d.
    """

    def __init__(
        self,
        scores: AttentionLogits,
        probability_quantizer: Passthrough | ActivationQuantizer,
        proj: nn.Module,
        proj_drop: nn.Module,
        scale: float,
    ) -> None:
        super().__init__()
        self.scores = scores
        self.probability_quantizer = probability_quantizer
        self.proj = proj
        self.proj_drop = proj_drop
        self.scale = scale

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Map tokens (B, N, C) to (B, N, C), optionally with an additive mask, never causally."""
        assert not is_causal, "vision transformers attend to all tokens"
        attended = self.scores.attended(x, self.scale, self.probability_quantizer, attn_mask)
        return self.proj_drop(self.proj(attended))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (B, N, C) to (B, H, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class RelativePositionBias(nn.Module):
    """Swin's learned bias on the logits of a window, by relative position of query and key.

    Args:
        table: ((2·Wh − 1)·(2·Ww − 1), H), the parameter of the full-precision layer.
        index: Row of the table for each query and key, (N, N), N = Wh·Ww.
    """

    index: Tensor

    def __init__(self, table: nn.Parameter, index: Tensor) -> None:
        super().__init__()
        # not under the name that timm exempts from weight decay: the released code decays it
        self.table = table
        self.register_buffer("index", index.clone(), persistent=False)

    def forward(self) -> Tensor:
        """Return the bias (H, N, N)."""
        return self.table[self.index].permute(2, 0, 1)


class QuantizedWindowAttention(QuantizedAttention):
    """Quantized attention inside Swin's windows; position bias and shift mask stay unquantized.

    Args:
        bias: The window's position bias.
        **parts: Arguments of :class:`QuantizedAttention`.
    """

    def __init__(self, bias: RelativePositionBias, **parts: Any) -> None:
        super().__init__(**parts)
        self.bias = bias

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Map tokens (images · windows, N, C) to that shape; mask (windows, N, N) of 0 and −100."""
        logits, v = self.scores(x)
        logits = logits * self.scale + padded_like(self.bias(), logits)
        if mask is not None:
            mask = padded_like(mask, logits).unsqueeze(1)
            logits = (logits.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
        return self.proj_drop(self.proj(attend(logits, v, self.probability_quantizer)))
