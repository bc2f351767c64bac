"""Models by name: timm's, and this package's small ones."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import EfficientNet, VisionTransformer, register_model
from timm.models._efficientnet_builder import decode_arch_def
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.convert import quantize
from ofq.quantization.layers import Passthrough, QuantizedLinear
from ofq.quantization.quantizers.base import OFF, make_weight_quantizer
from ofq.quantization.settings import Settings, keep_settings

TOY = "toy_regression_"
"""Beginning of the toy regression's names, before its number of weights."""


@register_model
def micro_deit_patch2_8(pretrained: bool = False, **options: object) -> VisionTransformer:
    """Build a DeiT for 8 × 8 grey images: patch 2, width 48, depth 4, 3 heads.

    Linear layers are initialised by Xavier's method, the position embedding with standard deviation
    0.2, since timm's initial weights train too slowly at this size.

    Raises:
        UserError: Pretrained weights are requested; there are none.
    """
    if pretrained:
        raise UserError("micro_deit_patch2_8 has no pretrained weights")
    model = VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        embed_dim=48,
        depth=4,
        num_heads=3,
        num_classes=int(str(options.get("num_classes", 10))),
        drop_path_rate=float(str(options.get("drop_path_rate", 0.0))),
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.normal_(model.pos_embed, std=0.2)
    return model


@register_model
def micro_mobilenetv2(pretrained: bool = False, **options: object) -> EfficientNet:
    """Build a MobileNetV2 for grey images of 28 × 28 or so: six blocks, 8 to 24 channels.

    Raises:
        UserError: Pretrained weights are requested; there are none.
    """
    if pretrained:
        raise UserError("micro_mobilenetv2 has no pretrained weights")
    return EfficientNet(
        decode_arch_def([["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e4_c16"], ["ir_r2_k3_s2_e4_c24"]]),
        num_features=96,
        stem_size=16,
        in_chans=int(str(options.get("in_chans", 1))),
        act_layer=nn.ReLU6,
        num_classes=int(str(options.get("num_classes", 10))),
        drop_path_rate=float(str(options.get("drop_path_rate", 0.0))),
    )


class ToyRegression(nn.Module):
    """Linear regression y = w·x: the smallest model in which quantized weights oscillate.

    Args:
        weights: Number of weights.
    """

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.linear = nn.Linear(weights, 1, bias=False)
        nn.init.normal_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, weights) to (B, 1)."""
        return self.linear(x)


def toy_weights(model: str) -> int:
    """Return the number of weights N of ``toy_regression_N``.

    Raises:
        UserError: The name has another form.
    """
    count = model.removeprefix(TOY)
    if not model.startswith(TOY) or not count.isdecimal() or int(count) == 0:
        raise UserError(f"unknown model '{model}'; allowed for this data set: {TOY}N, N weights")
    return int(count)


def build(
    name: str, classes: int, drop_path: float = 0.0, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a full-precision model with fresh weights.

    Args:
        name: Name of a model of timm or of this package.
        classes: Number of classes.
        drop_path: Highest rate of stochastic depth; overrides timm's defaults, such as Swin's 0.1.
        args: Further arguments of its constructor, such as ``img_size``.

    Raises:
        UserError: Neither timm nor this package has a model of this name, it has no stochastic
            depth, or doesn't take these arguments.
    """
    if name.startswith(TOY):
        if drop_path:
            raise UserError(f"{name} has one layer and no path to drop; allowed: drop_path 0")
        if args:
            raise UserError(f"{name} takes no model_args; given: {', '.join(args)}")
        return ToyRegression(toy_weights(name))
    check_name(name)
    try:
        return timm.create_model(
            name, num_classes=classes, drop_path_rate=drop_path, **(args or {})
        )
    except UserError:
        raise
    except Exception as error:  # each architecture raises its own errors for invalid arguments
        reason = str(error).partition("\n")[0]
        raise UserError(f"timm's {name} can't be built for this: {reason}") from None


def draft(
    name: str, classes: int, drop_path: float = 0.0, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a model on the meta device; on the CPU, if its construction needs values.

    Arguments and errors are those of :func:`build`.
    """
    try:
        with torch.device("meta"):
            return build(name, classes, drop_path, args)
    except UserError:
        return build(name, classes, drop_path, args)


def check_name(name: str) -> None:
    """Refuse a name that timm has no model of.

    Raises:
        UserError: It lies outside timm, or timm doesn't know it, or its weights' tag.
    """
    if any(mark in name for mark in ":/\\"):  # hf-hub:, local-dir:
        raise UserError(
            f"model '{name}' lies outside timm; allowed: a name of timm.list_models(), with local "
            "weights as 'pretrained'"
        )
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise UserError(
            f"unknown model '{name}'; timm has: {', '.join(near) or 'see timm.list_models()'}"
        )
    architecture, _, tag = name.partition(".")
    try:
        known = not tag or timm.get_pretrained_cfg(name) is not None
    except RuntimeError:
        known = False
    if not known:
        allowed = [architecture, *timm.list_models(f"{architecture}.*", pretrained=True)]
        raise UserError(
            f"unknown model '{name}': {architecture} has no weights called '{tag}'; "
            f"allowed: {', '.join(allowed)}"
        )


def quantized(model: nn.Module, settings: Settings) -> nn.Module:
    """Return a quantized copy of a model, the toy regression included.

    Raises:
        UserError: As for :func:`ofq.quantize`.
    """
    if isinstance(model, ToyRegression):
        return _quantized_toy(model, settings)
    return quantize(model, **vars(settings))


def _quantized_toy(model: ToyRegression, settings: Settings) -> nn.Module:
    if settings.activation_bits != OFF:
        raise UserError(
            f"the toy regression quantizes weights only; give W{settings.weight_bits}A{OFF}"
        )
    if settings.qkr or settings.layer_bits:
        raise UserError("the toy regression has one layer and no attention: no qkr, no layers")
    linear = model.linear
    quantizer = make_weight_quantizer(
        settings.weight_quantizer, settings.weight_bits, linear.weight, settings.options
    )
    toy = ToyRegression(linear.in_features)
    toy.linear = QuantizedLinear(linear, quantizer, Passthrough(), {"row": slice(0, 1)})
    keep_settings(toy, settings)
    return toy
