"""QKR in low-rank form: query and key weights are each a product of two quantized factors."""

import torch
from torch import Tensor, nn

from ofq.quantization.attention import AttentionLogits, split_heads
from ofq.quantization.layers import Passthrough, QuantizedLinear, own_parameter


class LowRankLogits(AttentionLogits):
    """Logits and values with W_q = U_q V_qᵀ and W_k = U_k V_kᵀ of inner width C/2.

    U and V are quantized separately, and the activation between them stays in floating point;
    query, key and value are quantized as without QKR.

    Args:
        input_quantizer: Activation quantizer of the tokens.
        q, k: V, then U, each pair as two linear layers.
        v: Linear layer of the values.
        q_quantizer, k_quantizer: Activation quantizers with a scale per token.
        v_quantizer: Activation quantizer with a scale per channel.
        heads: H.
    """

    def __init__(
        self,
        input_quantizer: Passthrough,
        q: nn.Sequential,
        k: nn.Sequential,
        v: QuantizedLinear,
        *,
        q_quantizer: Passthrough,
        k_quantizer: Passthrough,
        v_quantizer: Passthrough,
        heads: int,
    ) -> None:
        super().__init__()
        self.input_quantizer = input_quantizer
        self.q, self.k, self.v = q, k, v
        self.q_quantizer = q_quantizer
        self.k_quantizer = k_quantizer
        self.v_quantizer = v_quantizer
        self.heads = heads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (B, N, C) to unscaled logits (B, H, N, N) and values (B, H, N, d)."""
        x = self.input_quantizer(x)
        q_BHNd = split_heads(self.q_quantizer(self.q(x)), self.heads)
        k_BHNd = split_heads(self.k_quantizer(self.k(x)), self.heads)
        v = self.v_quantizer.shifted(self.v(x, [self.v_quantizer]))
        return q_BHNd @ k_BHNd.transpose(-2, -1), split_heads(v, self.heads)


def factorize(weight: Tensor, bias: Tensor | None) -> tuple[nn.Linear, nn.Linear]:
    """Factorize a linear layer into two whose composition approximates it best at half its rank.

    By truncated SVD; each factor includes the square roots of the singular values.

    Args:
        weight: (out, in).
        bias: (out,), kept by the second layer.

    Returns:
        Vᵀ (in → out/2) and U (out/2 → out).
    """
    left, values, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    rank = len(weight) // 2
    roots = values[:rank].sqrt()
    inner, outer = (
        nn.Linear(n, m, bias=False) for n, m in ((weight.shape[1], rank), (rank, len(weight)))
    )
    trainable = weight.requires_grad
    inner.weight = own_parameter((roots.unsqueeze(1) * right[:rank]).to(weight.dtype), trainable)
    outer.weight = own_parameter((left[:, :rank] * roots).to(weight.dtype), trainable)
    if bias is not None:
        outer.bias = own_parameter(bias)
    return inner, outer
