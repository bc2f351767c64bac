"""Conversion of timm models into quantized ones, and calibration of activation scales."""

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import chain

import torch
from timm.layers import Attention, Mlp, PatchDropout, PatchEmbed
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.activations import ActivationQuantizer, make_activation_quantizer
from ofq.quantization.attention import (
    QuantizedAttention,
    QuantizedWindowAttention,
    RelativePositionBias,
)
from ofq.quantization.convert_cnn import CNNS, convert_cnn
from ofq.quantization.convolution import QuantizedConvolution
from ofq.quantization.layers import (
    HasQuantizedWeight,
    ImageMlp,
    Passthrough,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedMlp,
    Shifted,
    quantized_activations,
    quantized_model,
    wrapper_of,
    wrong_size,
)
from ofq.quantization.quantizers.base import (
    OFF,
    WeightQuantizer,
    check_bits,
    check_options,
    make_weight_quantizer,
)
from ofq.quantization.quantizers.lsq import LSQ, ImageLSQ
from ofq.quantization.scheme import SCORES, Scheme
from ofq.quantization.settings import Settings, keep_settings


def quantize(
    model: nn.Module,
    weight_bits: int = 2,
    activation_bits: int = 2,
    weight_quantizer: str = "statsq",
    qkr: bool | str = False,
    *,
    options: Mapping[str, float | str] | None = None,
    activation_quantizer: str = "lsq",
    activation_options: Mapping[str, float] | None = None,
    first_last_bits: tuple[int, int] = (8, 8),
    layer_bits: Mapping[str, tuple[int, int]] | None = None,
) -> nn.Module:
    """Return a quantized copy of a timm ViT, DeiT, Swin, MobileNetV2, EfficientNet-lite or ResNet.

    In every block of a transformer qkv, proj, fc1 and fc2 (Swin: also the patch-merging reductions)
    get the given bits; patch embedding and heads get LSQ at 8 bits. LayerNorm, softmax, GELU,
    residuals and embeddings stay in floating point. In a convolutional network all convolutions
    get the given bits, but for the first one, which has LSQ at 8 bits, as the classifier has;
    batch norm, pooling and residuals stay in floating point. Weights keep their dtype, device and
    ``requires_grad``, so frozen ones stay frozen; the scales and shifts that quantization adds are
    trainable. Activation scales are set by :func:`calibrate`.

    Args:
        model: The full-precision model, which is left unchanged.
        weight_bits: 2 to 8, or 32 for off.
        activation_bits: 2 to 8, or 32 for off.
        weight_quantizer: ``statsq``, ``lsq`` or another registered name.
        qkr: Whether query and key are merged and quantized as one weight; ``"lowrank"`` for the
            low-rank form.
        options: Keyword arguments of the weight quantizer other than its bits.
        activation_quantizer: ``lsq`` or another registered name, for block activations.
        activation_options: Keyword arguments of the activation quantizer other than bits, axis and
            sign.
        first_last_bits: Weight and activation bits of patch embedding and heads, or of the first
            convolution and the classifier.
        layer_bits: Weight and activation bits by pattern of layer names in the given model, such
            as ``{"blocks.0.*": (4, 4)}``; the last match wins. Activations of an attention have the
            bits of its ``qkv``.

    Raises:
        UserError: A bit-width or name isn't allowed, a pattern matches no layer, or the model is
            quantized already or has a part that can't be quantized faithfully: another kind of
            layer, hooks, parametrizations, shared weights, or numbers that aren't finite.

    Example:
        >>> import ofq, timm
        >>> model = timm.create_model("deit_tiny_patch16_224", depth=1)
        >>> model = ofq.quantize(model, weight_bits=2, activation_bits=2, qkr=True)
        >>> model.blocks[0].mlp.fc1.weight_quantizer
        StatsQ(bits=2)
    """
    if (wrapper := wrapper_of(model)) is not None:
        raise UserError(
            f"the model is wrapped by {wrapper}; quantize the model itself, calibrate it, then wrap"
        )
    convert = next((own for kinds, own in _FAMILIES if isinstance(model, kinds)), None)
    if convert is None:
        raise UserError(
            f"can't quantize a {type(model).__name__}; allowed: timm's VisionTransformer (ViT, "
            "DeiT), SwinTransformer, EfficientNet (MobileNetV2, EfficientNet-lite) and ResNet"
        )
    if isinstance(getattr(model, "patch_drop", None), PatchDropout):
        raise UserError(
            "can't quantize patch_drop: activation scales are per token, so every image must have "
            "the same ones; make the model with patch_drop_rate=0"
        )
    if any(isinstance(m, HasQuantizedWeight) for m in model.modules()):
        raise UserError("the model is quantized already; quantize the full-precision model")
    _check_plain(model)
    scheme = scheme_for(
        model,
        weight_bits,
        activation_bits,
        weight_quantizer,
        qkr,
        options=options,
        activation_quantizer=activation_quantizer,
        activation_options=activation_options,
        first_last_bits=first_last_bits,
        layer_bits=layer_bits,
    )
    quantized = copy.deepcopy(model)
    convert(quantized, scheme)
    for activation in quantized_activations(quantized):
        activation.quantizer.awaits_calibration = True
    settings = Settings(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        weight_quantizer=weight_quantizer,
        qkr=qkr,
        options=dict(options or {}),
        activation_quantizer=activation_quantizer,
        activation_options=dict(activation_options or {}),
        first_last_bits=(first_last_bits[0], first_last_bits[1]),
        layer_bits={name: (bits[0], bits[1]) for name, bits in (layer_bits or {}).items()},
    )
    keep_settings(quantized, settings)
    return quantized.to(next(model.parameters()).device)


_OF_LIBRARIES = re.compile(r"(?:torch|timm)\.")


def _check_plain(model: nn.Module) -> None:
    """Refuse what a quantized copy would leave out, or part, without a word.

    Raises:
        UserError: A layer computes something of its own, shares its weights, or has NaN or inf.
    """
    for name, module in model.named_modules():
        kind = type(module)
        own = ""
        if hasattr(module, "parametrizations"):
            own = "has parametrizations; remove_parametrizations makes weights of them"
        elif name and (module._forward_pre_hooks or module._forward_hooks):
            own = "has hooks, as of pruning or weight_norm; remove them first"
        elif name and "forward" in vars(module):
            own = "has another forward than its class; take it off"
        elif isinstance(module, nn.Linear | nn.Conv2d) and not _OF_LIBRARIES.match(kind.__module__):
            own = f"is a {kind.__name__}; allowed: layers of torch and timm"
        if own:
            raise UserError(f"can't quantize {name or 'the model'}: it {own}")
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = seen.setdefault(id(parameter), name)
        if other != name:
            raise UserError(
                f"can't quantize {name}, which is {other} too: shared weights would be parted; "
                "give each layer its own"
            )
        if not (parameter.is_meta or torch.isfinite(parameter).all()):
            raise UserError(f"can't quantize {name}: it has NaN or inf; allowed: finite numbers")


def scheme_for(
    model: nn.Module,
    weight_bits: int,
    activation_bits: int,
    weight_quantizer: str,
    qkr: bool | str,
    *,
    options: Mapping[str, float | str] | None,
    activation_quantizer: str,
    activation_options: Mapping[str, float] | None,
    first_last_bits: tuple[int, int],
    layer_bits: Mapping[str, tuple[int, int]] | None,
) -> Scheme:
    """Validate the arguments of :func:`quantize` for a model, without quantizing it.

    Raises:
        UserError: A bit-width, name or option isn't allowed, or a pattern matches no layer.
    """
    if not isinstance(qkr, bool | str) or qkr not in SCORES:
        raise UserError(f"qkr {qkr!r}; allowed: False, True, 'lowrank'")
    if qkr and isinstance(model, CNNS):
        raise UserError(
            f"qkr {qkr!r}, but a {type(model).__name__} has no query and key; allowed: False"
        )
    layer_bits = layer_bits or {}
    _check_patterns(model, layer_bits)
    pairs = {"first_last_bits": first_last_bits} | {
        f"layer_bits[{k!r}]": v for k, v in layer_bits.items()
    }
    for name, pair in pairs.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"{name} {pair!r}; allowed: (weight bits, activation bits)")
    for bits in (weight_bits, activation_bits, *first_last_bits, *chain(*layer_bits.values())):
        if bits != OFF:
            check_bits(bits)
    check_options(weight_quantizer, options or {})
    make_activation_quantizer(activation_quantizer, 8, None, True, activation_options)
    return Scheme(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        weight_quantizer=weight_quantizer,
        options=options or {},
        activation_quantizer=activation_quantizer,
        activation_options=activation_options or {},
        scores=SCORES[qkr],
        first_last_bits=first_last_bits,
        layer_bits=layer_bits,
    )


def _check_patterns(model: nn.Module, patterns: Iterable[str]) -> None:
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            some = ", ".join(layers[:6])
            raise UserError(f"layer_bits: '{pattern}' matches no layer; there are {some}, …")


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set all activation scales from one batch.

    Runs the model once, in eval mode and without gradient; each quantizer takes its scale from
    inputs that the quantizers before it have already quantized. Earlier scales are discarded.
    Calibrate a model before it is trained, copied (as for an exponential moving average) or wrapped
    for data-parallel training, since the number of scales isn't known before.

    Args:
        model: A quantized model, in float32.
        images: (B, channels, H, W), normalized as for training: finite floating-point numbers, of
            the size that the model was made for.

    Raises:
        UserError: The model isn't quantized, is wrapped for data-parallel training or isn't in
            float32; the images don't fit it; or an activation isn't finite.
    """
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise UserError(
            "the model is wrapped by DistributedDataParallel, which fixes the number of its "
            "parameters; calibrate the model itself, then wrap it"
        )
    model = quantized_model(model)
    _check_float32(model)
    _check_images(model, images)
    activations = list(quantized_activations(model))
    for activation in activations:
        activation.quantizer.reset()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(images.float())
    finally:
        model.train(was_training)
    for activation in activations:
        parameters = activation.quantizer.parameters()
        if not all(torch.isfinite(parameter).all() for parameter in parameters):
            for other in activations:
                other.quantizer.reset()
            raise UserError(
                f"{activation.name}: its input isn't finite, although the images are; look for "
                "NaN or inf among the model's weights"
            )


def check_calibrated(model: nn.Module) -> None:
    """Refuse a quantized model whose activation scales aren't set.

    Raises:
        UserError: Names the first activation without scales.
    """
    for activation in quantized_activations(model):
        if not activation.quantizer.is_set:
            raise UserError(
                f"the model isn't calibrated: {activation.name} has no activation scales; call "
                "ofq.calibrate(model, images) first, or load its weights"
            )


def _check_float32(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UserError(
                f"the model's {name} is {parameter.dtype}; allowed: torch.float32, for all of it "
                "(model.float()); for lower precision train in float32 under torch.autocast"
            )


def _check_images(model: nn.Module, images: object) -> None:
    """Refuse images that can't calibrate a model.

    Raises:
        UserError: They are no floating-point tensor, empty, not finite, on another device than the
            model, or not of the model's size.
    """
    if not isinstance(images, Tensor):
        raise UserError(
            f"images: given a {type(images).__name__}; allowed: a tensor (B, channels, H, W)"
        )
    if images.layout != torch.strided:
        raise UserError(f"images: given {images.layout}; allowed: a dense tensor (to_dense())")
    if not images.is_floating_point():
        raise UserError(
            f"images: given {images.dtype}; allowed: floating-point numbers, normalized as for "
            "training"
        )
    embedding = next((m for m in model.modules() if isinstance(m, PatchEmbed)), None)
    first = next((m for m in model.modules() if isinstance(m, QuantizedConvolution)), None)
    if embedding is not None:
        _check_size(embedding, images)
    elif first is not None and (images.ndim != 4 or images.shape[1] != first.in_channels):
        raise UserError(
            f"images: given shape {tuple(images.shape)}; allowed: (B, {first.in_channels}, H, W) "
            f"with {first.in_channels} channels"
        )
    if images.numel() == 0:
        raise UserError(f"images: given none, of shape {tuple(images.shape)}; give one batch")
    device = next(model.parameters()).device
    if images.device != device:
        raise UserError(f"images: on {images.device}, but the model is on {device}; move one")
    if not torch.isfinite(images).all():
        finite = torch.isfinite(images).flatten(1).all(1)
        raise UserError(
            f"images: {int((~finite).sum())} of {len(images)} have NaN or inf; allowed: finite "
            "numbers"
        )


def _check_size(embedding: PatchEmbed, images: Tensor) -> None:
    channels, sizes = embedding.proj.in_channels, embedding.img_size
    fits = images.ndim == 4 and images.shape[1] == channels
    if not fits:
        height, width = sizes or ("H", "W")
        raise UserError(
            f"images: given shape {tuple(images.shape)}; allowed: (B, {channels}, {height}, "
            f"{width}) with {channels} channels"
        )
    if sizes is not None and tuple(images.shape[2:]) != tuple(sizes):
        raise wrong_size(images.shape[2:], sizes, embedding.patch_size)


def set_gradient_batch(model: nn.Module, counted: int, per_pass: int) -> None:
    """Set the batch size that the gradient factor g of all activation quantizers counts.

    By default it is that of one forward pass. With the images of a whole optimizer step, gradient
    accumulation and data-parallel training give scales the gradients of one large batch. With the
    paper's per-device batch (140 for DeiT-T), any number of devices gives the paper's gradients.

    Args:
        model: A quantized model.
        counted: Images that g counts.
        per_pass: Images in one forward pass on one device.
    """
    weights = {m for w in model.modules() if isinstance(w, WeightQuantizer) for m in w.modules()}
    for module in model.modules():
        if isinstance(module, ActivationQuantizer) and module not in weights:
            module.batch_ratio = counted / per_pass


def _convert_transformer(model: nn.Module, scheme: Scheme) -> None:
    _convert_parts(model, scheme, "")
    _convert_heads(model, scheme)
    _refuse_leftovers(model)


_FAMILIES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[nn.Module, Scheme], None]], ...] = (
    ((VisionTransformer, SwinTransformer), _convert_transformer),
    (CNNS, convert_cnn),
)
"""Classes of timm's models, and what converts a model of these classes in place."""


def _convert_parts(module: nn.Module, scheme: Scheme, prefix: str) -> None:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        convert = _CONVERTERS.get(type(child))
        if convert is not None:
            setattr(module, name, convert(child, scheme, path))
        else:
            _convert_parts(child, scheme, f"{path}.")


def _convert_attention(attention: nn.Module, scheme: Scheme, path: str) -> nn.Module:
    for part in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attention, part), nn.Identity):
            raise UserError(f"can't quantize {path}: OFQ defines no attention with a {part}")
    if attention.gate is not None:
        raise UserError(f"can't quantize {path}: OFQ defines no attention with a gate")
    return QuantizedAttention(**_attention_parts(attention, scheme, path))


def _convert_window_attention(attention: nn.Module, scheme: Scheme, path: str) -> nn.Module:
    bias = RelativePositionBias(
        attention.relative_position_bias_table,  # type: ignore[arg-type]
        attention.relative_position_index,  # type: ignore[arg-type]
    )
    return QuantizedWindowAttention(bias, **_attention_parts(attention, scheme, path))


def _attention_parts(attention: nn.Module, scheme: Scheme, path: str) -> dict[str, object]:
    if attention.attn_drop.p:  # type: ignore[union-attr]
        raise UserError(
            f"can't quantize {path}: OFQ defines no dropout of quantized attention probabilities; "
            "make the model with attn_drop_rate=0"
        )
    inner, outer = scheme.at(f"{path}.qkv"), scheme.at(f"{path}.proj")
    return {
        "scores": scheme.scores(attention.qkv, attention.num_heads, inner),  # type: ignore[arg-type]
        "probability_quantizer": inner.probability(),
        "proj": outer.linear(attention.proj, "proj"),  # type: ignore[arg-type]
        "proj_drop": attention.proj_drop,
        "scale": attention.scale,
    }


def _convert_mlp(mlp: nn.Module, scheme: Scheme, path: str) -> nn.Module:
    is_gelu = isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
    if not is_gelu or not isinstance(mlp.norm, nn.Identity):
        raise UserError(
            f"can't quantize {path}: fc2's input is quantized without a sign, which fits GELU's "
            f"output, but here it comes from {mlp.act} and {type(mlp.norm).__name__}"
        )
    return QuantizedMlp(
        scheme.at(f"{path}.fc1").linear(mlp.fc1, "fc1"),  # type: ignore[arg-type]
        scheme.at(f"{path}.fc2").linear(mlp.fc2, "fc2", signed=False),  # type: ignore[arg-type]
        mlp.drop1,  # type: ignore[arg-type]
        mlp.drop2,  # type: ignore[arg-type]
    )


def _convert_swin_block(block: nn.Module, scheme: Scheme, path: str) -> nn.Module:
    _convert_parts(block, scheme, f"{path}.")
    block.mlp = ImageMlp(block.mlp, width=block.input_resolution[1])  # type: ignore[arg-type,index]
    return block


def _convert_patch_embedding(embedding: nn.Module, scheme: Scheme, path: str) -> nn.Module:
    conv = embedding.proj
    if not isinstance(conv, nn.Conv2d):
        raise UserError(f"can't quantize {path}: its projection is a {type(conv).__name__}")
    weight_bits, activation_bits = scheme.first_last(f"{path}.proj")
    inputs = Passthrough()
    if activation_bits != OFF:
        if embedding.img_size is None:
            raise UserError(
                f"can't quantize {path}: its input has a shift for each pixel, so the size of "
                "images must be known; make the model with img_size=..."
            )
        inputs = Shifted(ImageLSQ(activation_bits), *embedding.img_size)  # type: ignore[misc]
    weights = make_weight_quantizer("lsq", weight_bits, conv.weight)
    embedding.proj = QuantizedConv2d(conv, weights, inputs)
    return embedding


def _convert_patch_merging(merging: nn.Module, scheme: Scheme, path: str) -> nn.Module:
    reduction = merging.reduction
    assert isinstance(reduction, nn.Linear)
    merging.reduction = scheme.at(f"{path}.reduction").linear(reduction, "reduction")
    if reduction.bias is None:
        # the released code learns one; zero preserves the full-precision function
        merging.reduction.bias = nn.Parameter(
            reduction.weight.new_zeros(reduction.out_features), reduction.weight.requires_grad
        )
    return merging


_CONVERTERS: dict[type[nn.Module], Callable[[nn.Module, Scheme, str], nn.Module]] = {
    Attention: _convert_attention,
    WindowAttention: _convert_window_attention,
    Mlp: _convert_mlp,
    PatchEmbed: _convert_patch_embedding,
    PatchMerging: _convert_patch_merging,
    SwinTransformerBlock: _convert_swin_block,
}


def _convert_heads(model: nn.Module, scheme: Scheme) -> None:
    for name in (n for n in ("head", "head_dist", "head.fc") if _is_linear(model, n)):
        owner, _, attribute = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight_bits, activation_bits = scheme.first_last(name)
        inputs = Passthrough()
        if activation_bits != OFF:
            inputs = Shifted(LSQ(activation_bits), linear.in_features)
        weights = make_weight_quantizer("lsq", weight_bits, linear.weight)
        head = QuantizedLinear(linear, weights, inputs, roles={})
        setattr(model.get_submodule(owner), attribute, head)


def _is_linear(model: nn.Module, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name), nn.Linear)
    except AttributeError:
        return False


def _refuse_leftovers(model: nn.Module) -> None:
    done = (QuantizedLinear, QuantizedConv2d)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not isinstance(module, done):
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            raise UserError(
                f"can't quantize {name}: OFQ defines no {type(module).__name__} in a {owner}"
            )
