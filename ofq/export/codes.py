"""Packing of quantized weights as integer codes, and models that hold only quantized weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofq.errors import UserError, some
from ofq.quantization.attention import FixedQueryKey, MergedQueryKey
from ofq.quantization.convolution import QuantizedConvolution
from ofq.quantization.layers import HasQuantizedWeight
from ofq.quantization.quantizers.base import WeightQuantizer, weight_quantizers
from ofq.quantization.settings import keep_settings

_BYTE = 8


@dataclass(frozen=True)
class PackedWeight:
    """Quantized weight of shape (rows, ...) as packed codes.

    Attributes:
        quantizer: Registered name of its quantizer, which defines how codes are decoded.
        bits: Bits per code.
        shape: Shape of the weight.
        codes: Result of :func:`pack`, uint8.
        scale: Quantization scale, float32; broadcasts over the weight.
    """

    quantizer: str
    bits: int
    shape: tuple[int, ...]
    codes: Tensor
    scale: Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes of b bits each into bytes.

    Codes are in two's complement and follow each other without gaps, from the lowest bit of the
    row's first byte upwards, across bytes. Only a row's last byte may have unused bits, all 0.

    Args:
        codes: (rows, n), int8, from −2^(b−1) to 2^(b−1) − 1.
        bits: b, 2 to 8.

    Returns:
        (rows, ⌈n·b/8⌉), uint8.
    """
    each = _bits(codes.view(torch.uint8), bits).flatten(1)
    return _number(F.pad(each, (0, -each.shape[1] % _BYTE)).unflatten(1, (-1, _BYTE)))


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Unpack the codes (rows, columns), int8, from the result of :func:`pack`.

    Args:
        packed: (rows, ⌈columns·b/8⌉), uint8.
        bits: b, 2 to 8.
        columns: Codes per row.
    """
    each = _bits(packed, _BYTE).flatten(1)[:, : columns * bits]
    unsigned = _number(each.unflatten(1, (columns, bits)))
    sign = 2 ** (bits - 1)
    # bytes wrap around, so this sign extension is correct at 8 bits too
    return ((unsigned ^ sign) - sign).view(torch.int8)


def _bits(numbers: Tensor, count: int) -> Tensor:
    """Return the lowest bits of bytes, lowest first, along a new last dimension."""
    return (numbers.unsqueeze(-1) >> _places(count, numbers.device)) & 1


def _number(bits: Tensor) -> Tensor:
    """Combine bits along the last dimension into bytes."""
    return (bits << _places(bits.shape[-1], bits.device)).sum(-1, dtype=torch.uint8)


def _places(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=device)


@torch.no_grad()
def pack_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """Pack all quantized weights of a model by layer, including first and last layers.

    Raises:
        UserError: A quantizer's decoded codes don't equal its quantized weight.
    """
    return {name: _packed(name, layer, quantizer) for name, layer, quantizer in _quantized(model)}


def _quantized(model: nn.Module) -> Iterator[tuple[str, HasQuantizedWeight, WeightQuantizer]]:
    for name, module in model.named_modules():
        if isinstance(module, HasQuantizedWeight) and isinstance(
            module.weight_quantizer, WeightQuantizer
        ):
            yield name, module, module.weight_quantizer


def _packed(name: str, layer: HasQuantizedWeight, quantizer: WeightQuantizer) -> PackedWeight:
    latent = layer.latent_weight()
    scale, quantized = quantizer.scale(latent), quantizer(latent)
    codes = _codes(quantizer, latent, quantized)
    if not torch.equal(quantizer.decode(codes, scale), quantized):
        raise UserError(
            f"can't pack {name}: {type(quantizer).__name__} gives it other values by decode(codes, "
            "scale) than by forward(weight)"
        )
    rows = codes.to(torch.int8).flatten(1)
    return PackedWeight(
        weight_quantizers.name_of(quantizer),
        quantizer.bits,
        tuple(latent.shape),
        pack(rows, quantizer.bits),
        scale.contiguous(),
    )


def _codes(quantizer: WeightQuantizer, latent: Tensor, quantized: Tensor) -> Tensor:
    """Compute the codes of a quantized weight, float32.

    They are computed from quantized values, which are far from rounding thresholds: from latent
    weights, one next to a threshold could get another code than in the forward pass.
    """
    zero = quantizer.decode(torch.zeros_like(quantized), quantizer.scale(latent))
    # a row of zeros may have step 0
    step = quantizer.step_size(latent).clamp_min(torch.finfo(torch.float32).tiny)
    return ((quantized - zero) / step).round_().clamp_(quantizer.lowest, quantizer.highest)


@torch.no_grad()
def hold_weights(model: nn.Module, packed: Mapping[str, PackedWeight]) -> nn.Module:
    """Replace the weights of a quantized model by packed ones, which it no longer quantizes.

    A layer's parameter ``weight`` is then the quantized weight itself; of query and key under QKR
    only their product remains. Such a model is for evaluation only.

    Args:
        model: The model, which is changed in place; its own weights are lost.
        packed: All of its quantized weights, by layer.

    Returns:
        The model.

    Raises:
        UserError: The weights are of another model: layers are missing or extra, or differ in
            bits, shape or quantizer.
    """
    layers = {name: (layer, quantizer) for name, layer, quantizer in _quantized(model)}
    if layers.keys() != packed.keys():
        differing = sorted(layers.keys() ^ packed.keys())
        raise UserError(f"not the quantized layers of this model: {some(differing)}")
    for name, (layer, quantizer) in layers.items():
        model.set_submodule(name, _holding(layer, _unpacked(name, packed[name], layer, quantizer)))
    keep_settings(model, None)
    return model


def _unpacked(
    name: str, packed: PackedWeight, layer: HasQuantizedWeight, quantizer: WeightQuantizer
) -> Tensor:
    """Decode a packed weight; refuse one that doesn't fit its layer."""
    latent = layer.latent_weight()
    rows, columns = len(latent), latent[0].numel()
    wanted = {
        "types": ((packed.codes.dtype, packed.scale.dtype), (torch.uint8, torch.float32)),
        "quantizer": (packed.quantizer, weight_quantizers.name_of(quantizer)),
        "bits": (packed.bits, quantizer.bits),
        "shape": (packed.shape, tuple(latent.shape)),
        "bytes": (tuple(packed.codes.shape), (rows, -(-columns * quantizer.bits // _BYTE))),
        "scales": (tuple(packed.scale.shape), tuple(quantizer.scale(latent).shape)),
    }
    for what, (actual, own) in wanted.items():
        if actual != own:
            raise UserError(f"not a weight of this model: {name} has {what} {actual}, not {own}")
    if not packed.scale.isfinite().all():
        raise UserError(f"not a weight of this model: {name} has scales that aren't finite")
    codes = unpack(packed.codes, packed.bits, columns).view(packed.shape)
    return quantizer.decode(codes.float(), packed.scale)


def _holding(layer: HasQuantizedWeight, weight: Tensor) -> nn.Module:
    if isinstance(layer, MergedQueryKey):
        return FixedQueryKey(weight, layer.heads)
    assert isinstance(layer, nn.Linear | nn.Conv2d | QuantizedConvolution)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.weight_quantizer = nn.Identity()
    return layer
