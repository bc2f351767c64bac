"""Conversion of timm's convolutional networks, quantized as by Nagel et al. 2022 (2203.11086).

MobileNetV2, EfficientNet-lite and ResNet, and what consists of the same parts.
"""

from timm.layers import BatchNormAct2d, Conv2dSame, DropPath, SelectAdaptivePool2d
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ofq.errors import UserError
from ofq.quantization.convolution import QuantizedConvolution, role_of, weight_matrix
from ofq.quantization.layers import Passthrough, QuantizedLinear, Unshifted
from ofq.quantization.quantizers.base import OFF, make_weight_quantizer
from ofq.quantization.quantizers.lsq import LSQ, ImageLSQ
from ofq.quantization.scheme import Scheme

CNNS = (EfficientNet, ResNet)
"""timm's classes of convolutional networks that can be quantized, as far as their parts can."""

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_KNOWN = (
    *_CONVOLUTIONS, *_BATCH_NORMS, *_RECTIFIERS, nn.Linear, nn.Identity, nn.Sequential, nn.Flatten,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, SelectAdaptivePool2d, nn.Dropout, DropPath,
    InvertedResidual, DepthwiseSeparableConv, BasicBlock, Bottleneck, *CNNS,
)  # fmt: skip


def convert_cnn(model: nn.Module, scheme: Scheme) -> None:
    """Quantize the convolutions and the classifier of a network, in place.

    The inputs of all layers are quantized per tensor, by codes without a sign behind a ReLU or
    ReLU6 and with a sign behind a linear bottleneck. The first convolution and the classifier have
    LSQ at the bits of the first and last layers.

    Raises:
        UserError: The model has a part that can't be quantized faithfully.
    """
    _check_parts(model)
    inputs: dict[str, bool] = {}
    _walk(model, "", False, inputs)
    first = next(iter(inputs))
    for name, signed in inputs.items():
        layer = model.get_submodule(name)
        quantized: nn.Module
        if isinstance(layer, nn.Linear):
            quantized = _classifier(layer, scheme.first_last(name), signed)
        elif name == first:
            quantized = _first(layer, scheme.first_last(name))
        else:
            quantized = _convolution(layer, scheme.at(name), signed)
        model.set_submodule(name, quantized)


def _check_parts(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module) not in _KNOWN:
            raise UserError(
                f"can't quantize {name}: {type(module).__name__} isn't among the parts of the "
                "networks that Nagel et al. quantize; allowed: convolutions with batch norm, and "
                "ReLU or ReLU6"
            )


def _walk(module: nn.Module, prefix: str, signed: bool, inputs: dict[str, bool]) -> bool:
    """Find a module's layers, in the order of its forward pass, and the signs of their inputs.

    Args:
        module: The module.
        prefix: Its name and a dot, or nothing.
        signed: Whether its input has a sign.
        inputs: Filled: whether a layer's input has a sign, by the layer's name.

    Returns:
        Whether the module's output has a sign.
    """
    own_input = signed
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if name == "downsample":  # a ResNet's shortcut, whose sum with the rest goes through a ReLU
            _walk(child, f"{path}.", own_input, inputs)
        elif isinstance(child, nn.Conv2d | nn.Linear):
            inputs[path] = signed
            signed = True
        elif isinstance(child, BatchNormAct2d):
            signed = isinstance(child.act, nn.Identity)
        elif isinstance(child, _RECTIFIERS):
            signed = False
        else:
            signed = _walk(child, f"{path}.", signed, inputs)
    return signed or (own_input and getattr(module, "has_skip", False))


def _first(conv: nn.Module, bits: tuple[int, int]) -> nn.Module:
    """Make the first layer, whose input are images: a scale for each of their channels."""
    assert isinstance(conv, nn.Conv2d)
    weight_bits, activation_bits = bits
    weights = make_weight_quantizer("lsq", weight_bits, weight_matrix(conv))
    inputs = Passthrough() if activation_bits == OFF else Unshifted(ImageLSQ(activation_bits))
    return QuantizedConvolution(conv, weights, inputs, roles={})


def _convolution(conv: nn.Module, scheme: Scheme, signed: bool) -> nn.Module:
    assert isinstance(conv, nn.Conv2d)
    weights = scheme.weight(weight_matrix(conv))
    inputs = Passthrough()
    if scheme.activation_bits != OFF:
        inputs = Unshifted(scheme.quantizer(axis=None, signed=signed))
    return QuantizedConvolution(conv, weights, inputs, {role_of(conv): slice(0, conv.out_channels)})


def _classifier(linear: nn.Linear, bits: tuple[int, int], signed: bool) -> nn.Module:
    weight_bits, activation_bits = bits
    weights = make_weight_quantizer("lsq", weight_bits, linear.weight)
    inputs = Passthrough()
    if activation_bits != OFF:
        inputs = Unshifted(LSQ(activation_bits, signed=signed))
    return QuantizedLinear(linear, weights, inputs, roles={})
