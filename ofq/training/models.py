"""Models that config files name: checked, quantized by a config, or with weights of timm's hub."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

from ofq.config import Quantization, parse_bits
from ofq.config.modules import import_module
from ofq.errors import UserError
from ofq.models import building
from ofq.models.building import TOY, ToyRegression, build, check_name, draft, toy_weights
from ofq.quantization import quantize
from ofq.quantization.convert import scheme_for
from ofq.quantization.quantizers.base import make_weight_quantizer
from ofq.quantization.settings import Settings

__all__ = [
    "ToyRegression",
    "build",
    "check",
    "from_hub",
    "home_and_summary",
    "quantized",
    "settings",
    "toy_weights",
]

_DIGITS = (1, 8, 8)


def home_and_summary(name: str) -> tuple[str, str]:
    """Return where a model comes from, and the first line of its docstring."""
    if name.startswith(TOY):
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
        model = draft(name, 2, drop_path, args)
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
        allowed = f"{TOY}N" if dataset == "toy_regression" else "a classifier of images"
        raise UserError(f"can't be trained on {dataset}; allowed: {allowed}")
    embedding = getattr(model, "patch_embed", None)
    if dataset == "digits" and isinstance(embedding, PatchEmbed):
        size = (embedding.proj.in_channels, *(embedding.img_size or _DIGITS[1:]))
        if size != _DIGITS:
            raise UserError(
                f"takes images of {' x '.join(map(str, size))}, but digits are "
                f"{' x '.join(map(str, _DIGITS))} (channels x height x width)"
            )


def _check_way(model: nn.Module, way: Quantization) -> None:
    _register(way)
    wanted = settings(way)
    if isinstance(model, ToyRegression):
        building.quantized(model, wanted)
        return
    scheme_for(model, **vars(wanted))
    try:
        make_weight_quantizer(way.weight_quantizer, wanted.weight_bits, torch.eye(8), way.options)
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
    check_name(name)
    about = timm.get_pretrained_cfg(name)
    if about is None:
        raise UserError(f"{name} has no pretrained weights; give a local file as 'pretrained'")
    if classes is not None and about.num_classes != classes:
        # timm would initialise a new head, and no run or teacher may start from an untrained one
        raise UserError(
            f"timm's weights of {name} are for {about.num_classes} classes, the data set has "
            f"{classes}; give a local file as 'pretrained'"
        )


def quantized(model: nn.Module, wanted: Quantization) -> nn.Module:
    """Return a copy of a model quantized by a config.

    Raises:
        UserError: The module that registers the method's weight quantizer can't be imported, or
            the model can't be quantized.
    """
    _register(wanted)
    return building.quantized(model, settings(wanted))


def settings(wanted: Quantization) -> Settings:
    """Return the arguments of :func:`ofq.quantize` that a config stands for."""
    weight_bits, activation_bits = parse_bits(wanted.bits)
    return Settings(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        weight_quantizer=wanted.weight_quantizer,
        qkr=wanted.qkr,
        options=wanted.options,
        activation_quantizer=wanted.activation_quantizer,
        activation_options=wanted.activation_options,
        first_last_bits=parse_bits(wanted.first_last),
        layer_bits={pattern: parse_bits(bits) for pattern, bits in wanted.layers.items()},
    )


def _register(wanted: Quantization) -> None:
    if wanted.module is not None:
        import_module(wanted.module, "the method")
