"""Conversion of quantized models to QuantizeLinear and DequantizeLinear nodes, for ONNX."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from ofq.errors import UserError
from ofq.quantization.activations import ActivationQuantizer, activation_quantizers
from ofq.quantization.attention import MergedQueryKey
from ofq.quantization.convolution import QuantizedConvolution
from ofq.quantization.layers import HasQuantizedWeight
from ofq.quantization.products import Product
from ofq.quantization.quantizers.base import WeightQuantizer
from ofq.quantization.quantizers.lsq import LSQ, floored

_QUANTIZE, _DEQUANTIZE = "ai.onnx::QuantizeLinear", "ai.onnx::DequantizeLinear"
_TYPES = {torch.int8: 3, torch.uint8: 2}  # ONNX's data types


@torch.no_grad()
def with_nodes(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized model that can only be exported to ONNX.

    Weights are integer codes followed by DequantizeLinear; a grid without a level at zero, such as
    StatsQ's, has odd codes and half its step. Activations pass through QuantizeLinear, Clip to
    their bits, and DequantizeLinear. All nodes have scale 1, and the scales are factors before and
    after them: onnxruntime 1.32 fuses a node with several scales into products that round
    activations again, or that fail.

    Raises:
        UserError: A weight's levels aren't evenly spaced around zero, so no such node represents
            them; or an activation quantizer isn't LSQ.
    """
    model = copy.deepcopy(model).eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, HasQuantizedWeight) and isinstance(
            module.weight_quantizer, WeightQuantizer
        ):
            weight = _Weight.of(name, module.latent_weight(), module.weight_quantizer)
            if isinstance(module, MergedQueryKey):
                model.set_submodule(name, _QueryKey(weight, module.heads))
            else:
                assert isinstance(module, nn.Linear | nn.Conv2d | QuantizedConvolution)
                module.weight_quantizer = weight
                module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    for name, module in list(model.named_modules()):
        if isinstance(module, ActivationQuantizer):
            if not isinstance(module, LSQ):
                kind = activation_quantizers.name_of(module)
                raise UserError(f"{name}: no ONNX node quantizes activations as '{kind}' does")
            model.set_submodule(name, _Activation(module))
    return model


class _Weight(nn.Module):
    """Replacement of a weight's quantizer by its codes (rows, ...) and scales."""

    codes: Tensor
    scale: Tensor
    one: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("one", torch.tensor(1.0))

    @classmethod
    def of(cls, name: str, latent: Tensor, quantizer: WeightQuantizer) -> "_Weight":
        """Make the codes of a weight, on a grid of half steps where it has no level at zero."""
        quantized = quantizer(latent)
        rows = (len(latent), *[1] * (latent.ndim - 1))
        step = quantizer.step_size(latent).expand(rows)
        for parts in (1, 2):
            unit = step / parts
            codes = (quantized / unit.clamp_min(torch.finfo(torch.float32).tiny)).round()
            if torch.allclose(codes * unit, quantized, rtol=1e-6, atol=0):
                kind = torch.int8 if codes.abs().max() < 2**7 else torch.int16
                return cls(codes.to(kind), unit.contiguous())
        raise UserError(
            f"can't export {name} to ONNX: the levels of {type(quantizer).__name__} aren't evenly "
            "spaced around zero"
        )

    def forward(self, weight: Tensor | None = None) -> Tensor:
        """Return the dequantized weight, for any argument."""
        return _dequantized(self.codes, self.one) * self.scale


def _dequantized(codes: Tensor, one: Tensor) -> Tensor:
    return symbolic(_DEQUANTIZE, (codes, one), dtype=torch.float32, shape=codes.shape)


class _QueryKey(nn.Module):
    """Replacement of :class:`MergedQueryKey` that holds the codes of its weight."""

    def __init__(self, weight: _Weight, heads: int) -> None:
        super().__init__()
        self.weight = weight
        self.heads = heads

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, C) to (B, N, H, C)."""
        return F.linear(x, self.weight(), bias).unflatten(-1, (self.heads, -1))


class _Activation(nn.Module):
    """Replacement of an activation quantizer by nodes."""

    scale: Tensor
    one: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, quantizer: LSQ) -> None:
        super().__init__()
        self.axes, self.bits = quantizer.axis, quantizer.bits
        kind = torch.int8 if quantizer.signed else torch.uint8
        self.register_buffer("scale", floored(quantizer.scale.detach()))
        self.register_buffer("one", torch.tensor(1.0))
        for name, code in zip(("low", "high"), quantizer.range, strict=True):
            self.register_buffer(name, torch.tensor(code, dtype=kind))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize an activation by nodes."""
        axes = {axis % x.ndim for axis in self.axes}
        scale = self.scale.reshape([n if d in axes else 1 for d, n in enumerate(x.shape)])
        kind, steps = self.low.dtype, x / scale
        codes = symbolic(
            _QUANTIZE,
            (steps, self.one),
            {"output_dtype": _TYPES[kind]},
            dtype=kind,
            shape=x.shape,
        )
        if self.bits < torch.iinfo(kind).bits:
            bounds = (codes, self.low, self.high)
            codes = symbolic("ai.onnx::Clip", bounds, dtype=kind, shape=x.shape)
        return _dequantized(codes, self.one) * scale

    def product(self, product: type[Product], x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the product of the quantized activation with other tensors."""
        return product.forward(self(x), *others)
