"""Models by name: timm's, and this package's small ones."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import VisionTransformer, register_model
from torch import Tensor, nn

from ofq.config import Quantization, parse_bits
from ofq.config.modules import import_module
from ofq.errors import UserError
from ofq.quantization import quantize
from ofq.quantization.convert import scheme_for
from ofq.quantization.layers import Passthrough, QuantizedLinear
from ofq.quantization.quantizers.base import OFF, make_weight_quantizer

_TOY = "toy_regression_"
_DIGITS = (1, 8, 8)


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
    count = model.removeprefix(_TOY)
    if not model.startswith(_TOY) or not count.isdecimal() or int(count) == 0:
        raise UserError(f"unknown model '{model}'; allowed for this data set: {_TOY}N, N weights")
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
    if name.startswith(_TOY):
        if drop_path:
            raise UserError(f"{name} has one layer and no path to drop; allowed: drop_path 0")
        if args:
            raise UserError(f"{name} takes no model_args; given: {', '.join(args)}")
        return ToyRegression(toy_weights(name))
    _check_name(name)
    try:
        return timm.create_model(
            name, num_classes=classes, drop_path_rate=drop_path, **(args or {})
        )
    except UserError:
        raise
    except Exception as error:  # each architecture raises its own errors for invalid arguments
        reason = str(error).partition("\n")[0]
        raise UserError(f"timm's {name} can't be built for this: {reason}") from None


def home_and_summary(name: str) -> tuple[str, str]:
    """Return where a model comes from, and the first line of its docstring."""
    if name.startswith(_TOY):
        return "built in", str(ToyRegression.__doc__).partition("\n")[0]
    if not timm.is_model(name):
        return "unknown", "timm has no model of this name"
    made = timm.models.model_entrypoint(name)
    root = made.__module__.partition(".")[0]
    home = {"timm": "timm", "ofq": "built in"}.get(root, made.__module__)
    return home, (made.__doc__ or "").strip().partition("\n")[0]


def check(
    name: str,
    ways: Sequence[tuple[str, Quantization]],
    source: str,
    *,
    dataset: str | None = None,
    drop_path: float = 0.0,
    args: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a model that can't be built, quantized as configured, or used with a data set.

    Args:
        name: As for :func:`build`.
        ways: As for :func:`mistakes`.
        source: As for :func:`mistakes`.
        dataset: As for :func:`mistakes`.
        drop_path: As for :func:`build`.
        args: As for :func:`build`.

    Raises:
        UserError: The first of :func:`mistakes`.
    """
    found = mistakes(name, ways, source, dataset=dataset, drop_path=drop_path, args=args)
    for place, mistake in found:
        raise UserError(f"{place}: {mistake}")


def mistakes(
    name: str,
    ways: Sequence[tuple[str, Quantization]],
    source: str,
    *,
    dataset: str | None = None,
    drop_path: float = 0.0,
    args: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield why a model can't be built, used with a data set, or quantized as configured.

    The model is built and quantized on torch's meta device, without memory for its weights, which
    takes some 0.1 s.

    Args:
        name: As for :func:`build`.
        ways: Quantizations of the model, each after its place in the config, for errors.
        source: Place of the model's name in the config, for errors.
        dataset: A data set of this package; None, or another one, for any size of images.
        drop_path: As for :func:`build`.
        args: As for :func:`build`.

    Yields:
        The place in the config, and a line that names the part that can't be quantized, or the
        value that isn't allowed; of a model that can't be used at all, that alone.
    """
    try:
        model = draft(name, drop_path, args)
        if dataset is not None:
            _check_inputs(model, dataset)
        if ways and not isinstance(model, ToyRegression):
            quantize(model)
    except UserError as error:
        yield source, f"{name}: {error}"
        return
    for where, way in ways:
        try:
            _check_way(model, way)
        except UserError as error:
            yield where, str(error)


def _check_inputs(model: nn.Module, dataset: str) -> None:
    """Refuse a model that doesn't take the inputs of a data set."""
    if isinstance(model, ToyRegression) != (dataset == "toy_regression"):
        allowed = f"{_TOY}N" if dataset == "toy_regression" else "a classifier of images"
        raise UserError(f"can't be trained on {dataset}; allowed: {allowed}")
    embedding = getattr(model, "patch_embed", None)
    if dataset == "digits" and isinstance(embedding, PatchEmbed):
        size = (embedding.proj.in_channels, *(embedding.img_size or _DIGITS[1:]))
        if size != _DIGITS:
            raise UserError(
                f"takes images of {' x '.join(map(str, size))}, but digits are "
                f"{' x '.join(map(str, _DIGITS))} (channels x height x width)"
            )


def draft(name: str, drop_path: float, args: Mapping[str, Any] | None) -> nn.Module:
    """Build a model on the meta device; on the CPU, if its construction needs values.

    Raises:
        UserError: For the reasons of :func:`build`.
    """
    try:
        with torch.device("meta"):
            return build(name, 2, drop_path, args)
    except UserError:
        return build(name, 2, drop_path, args)


def _check_way(model: nn.Module, way: Quantization) -> None:
    _register(way)
    if isinstance(model, ToyRegression):
        _quantized_toy(model, way)
        return
    bits, options = _arguments(way)
    scheme_for(model, *bits, way.weight_quantizer, way.qkr, **options)
    try:
        make_weight_quantizer(way.weight_quantizer, bits[0], torch.eye(8), way.options)
    except UserError:
        raise
    except Exception:  # a user's quantizer may need a weight of another shape
        return


def from_hub(
    name: str, classes: int, drop_path: float = 0.0, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a full-precision model with the weights of timm's hub; arguments as :func:`build`.

    Raises:
        UserError: There is no such model, it has no weights for so many classes, or they can't be
            downloaded.
    """
    check_hub(name, classes)
    try:
        return timm.create_model(
            name, pretrained=True, num_classes=classes, drop_path_rate=drop_path, **(args or {})
        )
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"can't download timm's weights of {name}: {reason}; fetch them elsewhere and give the "
            "file as 'pretrained' (.safetensors, .pth or .pt)"
        ) from None


def check_hub(name: str, classes: int | None) -> None:
    """Refuse a model without weights for a number of classes, None for any, in timm's hub.

    Raises:
        UserError: There is no such model, or it has no such weights.
    """
    _check_name(name)
    about = timm.get_pretrained_cfg(name)
    if about is None:
        raise UserError(f"{name} has no pretrained weights; give a local file as 'pretrained'")
    if classes is not None and about.num_classes != classes:
        # timm would initialise a new head, and no run or teacher may start from an untrained one
        raise UserError(
            f"timm's weights of {name} are for {about.num_classes} classes, the data set has "
            f"{classes}; give a local file as 'pretrained'"
        )


def _check_name(name: str) -> None:
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


def quantized(model: nn.Module, wanted: Quantization) -> nn.Module:
    """Return a copy of a model quantized by a config.

    Raises:
        UserError: The module that registers the method's weight quantizer can't be imported, or
            the model can't be quantized.
    """
    _register(wanted)
    if isinstance(model, ToyRegression):
        return _quantized_toy(model, wanted)
    bits, options = _arguments(wanted)
    return quantize(model, *bits, wanted.weight_quantizer, wanted.qkr, **options)


def _arguments(wanted: Quantization) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return bits and options for :func:`ofq.quantize` from a config."""
    return parse_bits(wanted.bits), {
        "options": wanted.options,
        "activation_quantizer": wanted.activation_quantizer,
        "activation_options": wanted.activation_options,
        "first_last_bits": parse_bits(wanted.first_last),
        "layer_bits": {pattern: parse_bits(bits) for pattern, bits in wanted.layers.items()},
    }


def _register(wanted: Quantization) -> None:
    if wanted.module is not None:
        import_module(wanted.module, "the method")


def _quantized_toy(model: ToyRegression, wanted: Quantization) -> nn.Module:
    weight_bits, activation_bits = parse_bits(wanted.bits)
    if activation_bits != OFF:
        raise UserError(f"the toy regression quantizes weights only; give W{weight_bits}A{OFF}")
    if wanted.qkr or wanted.layers:
        raise UserError("the toy regression has one layer and no attention: no qkr, no layers")
    linear = model.linear
    quantizer = make_weight_quantizer(
        wanted.weight_quantizer, weight_bits, linear.weight, wanted.options
    )
    toy = ToyRegression(linear.in_features)
    toy.linear = QuantizedLinear(linear, quantizer, Passthrough(), {"row": slice(0, 1)})
    return toy
