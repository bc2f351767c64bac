"""Quantization scheme of a model: bits and quantizers by layer, and the form of attention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ofq.quantization.activations import ActivationQuantizer, make_activation_quantizer
from ofq.quantization.attention import (
    AttentionLogits,
    MergedQueryKey,
    QKRLogits,
    SeparateLogits,
    merge,
)
from ofq.quantization.layers import (
    Passthrough,
    PreShifted,
    QuantizedLinear,
    Shifted,
    own_parameter,
)
from ofq.quantization.lowrank import LowRankLogits, factorize
from ofq.quantization.quantizers.base import OFF, make_weight_quantizer

_TOKEN, _CHANNEL, _TOKEN_AND_HEAD = -2, -1, (1, 2)


@dataclass(frozen=True)
class Scheme:
    """Quantizers and bits of the parts of one model.

    Attributes:
        weight_bits: Bits of block weights; 32 for off.
        activation_bits: Bits of block activations; 32 for off.
        weight_quantizer: Registered name.
        options: Keyword arguments of the weight quantizer other than its bits.
        activation_quantizer: Registered name.
        activation_options: Keyword arguments of the activation quantizer other than bits, axis and
            sign.
        scores: Makes the part of an attention that computes logits and values.
        first_last_bits: Weight and activation bits of patch embedding and heads.
        layer_bits: Weight and activation bits by pattern of layer names.
    """

    weight_bits: int
    activation_bits: int
    weight_quantizer: str
    options: Mapping[str, float | str]
    activation_quantizer: str
    activation_options: Mapping[str, float]
    scores: "LogitsMaker"
    first_last_bits: tuple[int, int]
    layer_bits: Mapping[str, tuple[int, int]]

    def at(self, layer: str) -> "Scheme":
        """Return the scheme of one layer; the last pattern that matches its name gives the bits."""
        matches = [bits for pattern, bits in self.layer_bits.items() if fnmatchcase(layer, pattern)]
        if not matches:
            return self
        return replace(self, weight_bits=matches[-1][0], activation_bits=matches[-1][1])

    def first_last(self, layer: str) -> tuple[int, int]:
        """Return the weight and activation bits of a patch embedding or head."""
        default = replace(
            self, weight_bits=self.first_last_bits[0], activation_bits=self.first_last_bits[1]
        )
        own = default.at(layer)
        return own.weight_bits, own.activation_bits

    def weight(self, weight: Tensor) -> nn.Module:
        """Make the quantizer of a weight."""
        return make_weight_quantizer(self.weight_quantizer, self.weight_bits, weight, self.options)

    def quantizer(
        self, axis: int | tuple[int, ...] | None, signed: bool = True
    ) -> ActivationQuantizer:
        """Make an activation quantizer at the activation bits."""
        return make_activation_quantizer(
            self.activation_quantizer, self.activation_bits, axis, signed, self.activation_options
        )

    def activation(self, channels: int, axis: int = _TOKEN, signed: bool = True) -> Passthrough:
        """Make the quantizer of an activation (B, N, channels), with shifts before and after."""
        if self.activation_bits == OFF:
            return Passthrough()
        return Shifted(self.quantizer(axis, signed), channels)

    def logit(self, *shape: int, axis: int | tuple[int, ...] = _TOKEN) -> Passthrough:
        """Make the quantizer of keys, or of QKR's merged activation."""
        if self.activation_bits == OFF:
            return Passthrough()
        return PreShifted(self.quantizer(axis), *shape)

    def probability(self) -> Passthrough | ActivationQuantizer:
        """Make the quantizer of attention probabilities."""
        if self.activation_bits == OFF:
            return Passthrough()
        return self.quantizer(_TOKEN, signed=False)

    def linear(self, linear: nn.Linear, role: str, signed: bool = True) -> QuantizedLinear:
        """Make the quantized layer that replaces a linear one."""
        return QuantizedLinear(
            linear,
            self.weight(linear.weight),
            self.activation(linear.in_features, signed=signed),
            {role: slice(0, linear.out_features)},
        )


def _separate_logits(qkv: nn.Linear, heads: int, scheme: Scheme) -> AttentionLogits:
    channels = qkv.out_features // 3
    rows = [slice(i * channels, (i + 1) * channels) for i in range(3)]
    layer = QuantizedLinear(
        qkv,
        scheme.weight(qkv.weight),
        scheme.activation(qkv.in_features),
        dict(zip("qkv", rows, strict=True)),
    )
    return SeparateLogits(
        layer,
        q_quantizer=scheme.activation(channels),
        k_quantizer=scheme.logit(channels),
        v_quantizer=scheme.activation(channels, axis=_CHANNEL),
        heads=heads,
    )


def _qkr_logits(qkv: nn.Linear, heads: int, scheme: Scheme) -> AttentionLogits:
    q_weight, k_weight, _ = qkv.weight.chunk(3)
    channels = qkv.in_features
    return QKRLogits(
        input_quantizer=scheme.activation(channels),
        merged=MergedQueryKey(
            q_weight, k_weight, scheme.weight(merge(q_weight, k_weight, heads)), heads
        ),
        z_quantizer=scheme.logit(heads, channels, axis=_TOKEN_AND_HEAD),
        v=_value_layer(qkv, scheme),
        v_quantizer=scheme.activation(qkv.out_features // 3, axis=_CHANNEL),
    )


def _low_rank_logits(qkv: nn.Linear, heads: int, scheme: Scheme) -> AttentionLogits:
    weights = qkv.weight.chunk(3)
    biases = qkv.bias.chunk(3) if qkv.bias is not None else (None,) * 3
    channels = qkv.out_features // 3
    q, k = (
        nn.Sequential(*(_inner_layer(part, role, scheme) for part in factorize(weight, bias)))
        for role, weight, bias in zip("qk", weights[:2], biases[:2], strict=True)
    )
    return LowRankLogits(
        scheme.activation(qkv.in_features),
        q,
        k,
        v=_value_layer(qkv, scheme),
        q_quantizer=scheme.activation(channels),
        k_quantizer=scheme.logit(channels),
        v_quantizer=scheme.activation(channels, axis=_CHANNEL),
        heads=heads,
    )


def _value_layer(qkv: nn.Linear, scheme: Scheme) -> QuantizedLinear:
    weight = qkv.weight.chunk(3)[2]
    v = nn.Linear(qkv.in_features, len(weight), bias=qkv.bias is not None, device=weight.device)
    v.weight = own_parameter(weight)
    if qkv.bias is not None:
        v.bias = own_parameter(qkv.bias.chunk(3)[2])
    return _inner_layer(v, "v", scheme)


def _inner_layer(linear: nn.Linear, role: str, scheme: Scheme) -> QuantizedLinear:
    """Make a layer whose input is already quantized, or stays in floating point."""
    rows = {role: slice(0, linear.out_features)}
    return QuantizedLinear(linear, scheme.weight(linear.weight), Passthrough(), rows)


LogitsMaker = Callable[[nn.Linear, int, Scheme], AttentionLogits]
SCORES: dict[bool | str, LogitsMaker] = {
    False: _separate_logits,
    True: _qkr_logits,
    "lowrank": _low_rank_logits,
}
