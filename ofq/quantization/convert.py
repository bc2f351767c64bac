"""Turning a timm model into a quantized one, and setting its activation scales."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.attention import (
    MergedQueryKey,
    QKRScores,
    QuantizedAttention,
    QuantizedWindowAttention,
    RelativePositionBias,
    SeparateScores,
    merge,
)
from ofq.quantization.layers import (
    ActivationQuantizer,
    ImageMlp,
    LogitQuantizer,
    QuantizedConv2d,
    QuantizedLinear,
)
from ofq.quantization.lsq import LSQ, ImageLSQ
from ofq.quantization.quantizer import OFF, check_bits, make_weight_quantizer

_END_BITS = 8  # patch embedding and heads
_TOKEN, _CHANNEL, _TOKEN_AND_HEAD = -2, -1, (1, 2)


@dataclass(frozen=True)
class _Scheme:
    """How the parts of one model are quantized."""

    weight_bits: int
    activation_bits: int
    weight_quantizer: str
    qkr: bool

    def weight(self, weight: Tensor) -> nn.Module:
        return make_weight_quantizer(self.weight_quantizer, self.weight_bits, weight)

    def lsq(self, axis: int | tuple[int, ...], signed: bool = True) -> LSQ:
        return LSQ(self.activation_bits, axis, signed)

    def activation(self, channels: int, axis: int = _TOKEN, signed: bool = True) -> nn.Module:
        if self.activation_bits == OFF:
            return nn.Identity()
        return ActivationQuantizer(self.lsq(axis, signed), channels)

    def logit(self, *shape: int, axis: int | tuple[int, ...] = _TOKEN) -> nn.Module:
        if self.activation_bits == OFF:
            return nn.Identity()
        return LogitQuantizer(self.lsq(axis), *shape)

    def probability(self) -> nn.Module:
        if self.activation_bits == OFF:
            return nn.Identity()
        return self.lsq(_TOKEN, signed=False)

    def linear(self, linear: nn.Linear, role: str, signed: bool = True) -> QuantizedLinear:
        return QuantizedLinear(
            linear,
            self.weight(linear.weight),
            self.activation(linear.in_features, signed=signed),
            {role: slice(0, linear.out_features)},
        )


def quantize(
    model: nn.Module,
    weight_bits: int = 2,
    activation_bits: int = 2,
    weight_quantizer: str = "statsq",
    qkr: bool = False,
) -> nn.Module:
    """A quantized copy of a timm ViT, DeiT (plain or distilled) or Swin; the model is unchanged.

    In every block qkv, proj, fc1 and fc2 (Swin: the patch-merging reductions too) get the given
    bits; patch embedding and heads get LSQ at 8 bits. LayerNorm, softmax, GELU, residuals and
    embeddings stay in floating point. All weights are taken over; activation scales are set by
    :func:`calibrate`.

    Args:
        model: The full-precision model.
        weight_bits: 2 to 8, or 32 = off.
        activation_bits: 2 to 8, or 32 = off.
        weight_quantizer: ``statsq``, ``lsq`` or another registered name.
        qkr: Whether query and key are merged and quantized as one.

    Raises:
        UserError: A bit-width or name isn't allowed, or the model has a part that can't be
            quantized faithfully.

    Example:
        >>> import ofq, timm
        >>> model = timm.create_model("deit_tiny_patch16_224", depth=1)
        >>> model = ofq.quantize(model, weight_bits=2, activation_bits=2, qkr=True)
        >>> model.blocks[0].mlp.fc1.weight_quantizer
        StatsQ(bits=2)
    """
    if not isinstance(model, VisionTransformer | SwinTransformer):
        raise UserError(
            f"can't quantize a {type(model).__name__}; allowed: timm's VisionTransformer (ViT, "
            "DeiT) and SwinTransformer"
        )
    for bits in (weight_bits, activation_bits):
        if bits != OFF:
            check_bits(bits)
    scheme = _Scheme(weight_bits, activation_bits, weight_quantizer, qkr)
    quantized = copy.deepcopy(model)
    _convert_parts(quantized, scheme, "")
    _convert_ends(quantized)
    _refuse_leftovers(quantized)
    return quantized


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set all activation scales from one batch.

    Runs the model once, in eval mode and without gradient; each quantizer takes its scale from
    inputs that the quantizers before it have already quantized. Scales set earlier are forgotten.

    Args:
        model: A quantized model.
        images: (B, channels, H, W), as the training data gives them.
    """
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | LogitQuantizer):
            module.quantizer.reset()
        elif isinstance(module, QuantizedAttention) and isinstance(
            module.probability_quantizer, LSQ
        ):
            module.probability_quantizer.reset()
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(images)
    model.train(was_training)


def _convert_parts(module: nn.Module, scheme: _Scheme, prefix: str) -> None:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        convert = _CONVERTERS.get(type(child))
        if convert is not None:
            setattr(module, name, convert(child, scheme, path))
        else:
            _convert_parts(child, scheme, f"{path}.")


def _convert_attention(attention: nn.Module, scheme: _Scheme, path: str) -> nn.Module:
    for part in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attention, part), nn.Identity):
            raise UserError(f"can't quantize {path}: OFQ defines no attention with a {part}")
    if attention.gate is not None:
        raise UserError(f"can't quantize {path}: OFQ defines no attention with a gate")
    return QuantizedAttention(**_attention_parts(attention, scheme))


def _convert_window_attention(attention: nn.Module, scheme: _Scheme, path: str) -> nn.Module:
    bias = RelativePositionBias(
        attention.relative_position_bias_table,  # type: ignore[arg-type]
        attention.relative_position_index,  # type: ignore[arg-type]
    )
    return QuantizedWindowAttention(bias, **_attention_parts(attention, scheme))


def _attention_parts(attention: nn.Module, scheme: _Scheme) -> dict[str, object]:
    scores = _qkr_scores if scheme.qkr else _separate_scores
    return {
        "scores": scores(attention.qkv, attention.num_heads, scheme),  # type: ignore[arg-type]
        "probability_quantizer": scheme.probability(),
        "proj": scheme.linear(attention.proj, "proj"),  # type: ignore[arg-type]
        "attn_drop": attention.attn_drop,
        "proj_drop": attention.proj_drop,
        "scale": attention.scale,
    }


def _separate_scores(qkv: nn.Linear, heads: int, scheme: _Scheme) -> nn.Module:
    channels = qkv.out_features // 3
    rows = [slice(i * channels, (i + 1) * channels) for i in range(3)]
    layer = QuantizedLinear(
        qkv,
        scheme.weight(qkv.weight),
        scheme.activation(qkv.in_features),
        dict(zip("qkv", rows, strict=True)),
    )
    return SeparateScores(
        layer,
        q_quantizer=scheme.activation(channels),
        k_quantizer=scheme.logit(channels),
        v_quantizer=scheme.activation(channels, axis=_CHANNEL),
        heads=heads,
    )


def _qkr_scores(qkv: nn.Linear, heads: int, scheme: _Scheme) -> nn.Module:
    q_weight, k_weight, v_weight = qkv.weight.detach().chunk(3)
    channels = qkv.in_features
    v = nn.Linear(channels, len(v_weight), bias=qkv.bias is not None, device=v_weight.device)
    v.weight = nn.Parameter(v_weight.clone())
    if qkv.bias is not None:
        v.bias = nn.Parameter(qkv.bias.detach().chunk(3)[2].clone())
    rows = {"v": slice(0, len(v_weight))}
    return QKRScores(
        input_quantizer=scheme.activation(channels),
        merged=MergedQueryKey(
            q_weight, k_weight, scheme.weight(merge(q_weight, k_weight, heads)), heads
        ),
        z_quantizer=scheme.logit(heads, channels, axis=_TOKEN_AND_HEAD),
        v=QuantizedLinear(v, scheme.weight(v.weight), nn.Identity(), rows),
        v_quantizer=scheme.activation(len(v_weight), axis=_CHANNEL),
    )


def _convert_mlp(mlp: nn.Module, scheme: _Scheme, path: str) -> nn.Module:
    if not isinstance(mlp.act, nn.GELU) or not isinstance(mlp.norm, nn.Identity):
        raise UserError(
            f"can't quantize {path}: fc2's input is quantized without a sign, which fits GELU's "
            f"output, but here it comes from {type(mlp.act).__name__} and {type(mlp.norm).__name__}"
        )
    mlp.fc1 = scheme.linear(mlp.fc1, "fc1")  # type: ignore[arg-type]
    mlp.fc2 = scheme.linear(mlp.fc2, "fc2", signed=False)  # type: ignore[arg-type]
    return mlp


def _convert_swin_block(block: nn.Module, scheme: _Scheme, path: str) -> nn.Module:
    _convert_parts(block, scheme, f"{path}.")
    block.mlp = ImageMlp(block.mlp, width=block.input_resolution[1])  # type: ignore[arg-type,index]
    return block


def _convert_patch_embedding(embedding: nn.Module, scheme: _Scheme, path: str) -> nn.Module:
    conv = embedding.proj
    if not isinstance(conv, nn.Conv2d):
        raise UserError(f"can't quantize {path}: its projection is a {type(conv).__name__}")
    inputs = ActivationQuantizer(ImageLSQ(_END_BITS), *embedding.img_size)  # type: ignore[misc]
    weights = make_weight_quantizer("lsq", _END_BITS, conv.weight)
    embedding.proj = QuantizedConv2d(conv, weights, inputs)
    return embedding


def _convert_patch_merging(merging: nn.Module, scheme: _Scheme, path: str) -> nn.Module:
    reduction = merging.reduction
    assert isinstance(reduction, nn.Linear)
    merging.reduction = scheme.linear(reduction, "reduction")
    if reduction.bias is None:
        # the released code learns one; zero leaves the full-precision function as it is
        merging.reduction.bias = nn.Parameter(reduction.weight.new_zeros(reduction.out_features))
    return merging


_CONVERTERS: dict[type[nn.Module], Callable[[nn.Module, _Scheme, str], nn.Module]] = {
    Attention: _convert_attention,
    WindowAttention: _convert_window_attention,
    Mlp: _convert_mlp,
    PatchEmbed: _convert_patch_embedding,
    PatchMerging: _convert_patch_merging,
    SwinTransformerBlock: _convert_swin_block,
}


def _convert_ends(model: nn.Module) -> None:
    head_names = [n for n in ("head", "head_dist", "head.fc") if _is_linear(model, n)]
    for name in head_names:
        owner, _, attribute = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weights = make_weight_quantizer("lsq", _END_BITS, linear.weight)
        inputs = ActivationQuantizer(LSQ(_END_BITS), linear.in_features)
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
                f"can't quantize {name}: OFQ says nothing of a {type(module).__name__} in a {owner}"
            )
