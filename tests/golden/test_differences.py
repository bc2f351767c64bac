"""Where we differ from the released code on purpose, each with a test; needs no golden data."""

import re

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import ofq
from ofq.errors import UserError
from ofq.quantization.attention import MergedQueryKey
from ofq.quantization.released import _PARTS, AsReleased, convert_released_state
from ofq.quantization.techniques.cga import AsPaper
from ofq.quantization.techniques.freezing import FreezingHistory


def vit() -> nn.Module:
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=1, num_heads=3)


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=8, patch_size=1, embed_dim=6, depths=(1, 1), num_heads=(1, 2), window_size=4
    )


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize("quantizer", [ofq.StatsQ, ofq.LSQ])
def test_one_bit_is_refused(quantizer: type[nn.Module]) -> None:
    with pytest.raises(UserError, match="1 bits; allowed: 2 to 8"):
        quantizer(1)


def test_a_row_of_zeros_stays_zero_and_passes_its_gradient() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, -2.0]], requires_grad=True)
    quantized = ofq.StatsQ(2)(weight)
    quantized.sum().backward()
    assert not quantized[0].any()
    assert torch.equal(weight.grad, torch.ones(2, 2))


def test_thresholds_beyond_the_codes_that_occur_count_too() -> None:
    # 3-bit codes −1 and 1 occur; 1.499 lies just below the threshold between 1 and 2
    position = torch.tensor([[1.499, -1.0, 0.499]])
    quantizer = ofq.StatsQ(3)
    assert AsPaper().trainable(position, 0.01, quantizer).tolist() == [[True, False, True]]
    released = AsReleased(vit()).trainable(position, 0.01, quantizer)
    assert released.tolist() == [[False, False, True]]


@pytest.mark.parametrize(("rule", "anneals"), [(AsPaper, True), (AsReleased, False)])
def test_the_merged_weight_is_annealed(rule: type[AsPaper], anneals: bool) -> None:
    model = ofq.quantize(vit(), qkr=True)
    made = rule(model) if rule is AsReleased else rule()
    ofq.ConfidenceGuidedAnnealing(model, 0.05, made)
    merged = next(m for m in model.modules() if isinstance(m, MergedQueryKey))
    assert (merged.gradient_mask is not None) == anneals


def test_swin_without_qkr_is_annealed() -> None:
    model = ofq.quantize(swin())
    ofq.ConfidenceGuidedAnnealing(model)
    with pytest.raises(UserError, match="nothing to anneal"):
        ofq.ConfidenceGuidedAnnealing(model, rule=AsReleased(model))
    with_qkr = ofq.quantize(swin(), qkr=True)
    ofq.ConfidenceGuidedAnnealing(with_qkr, rule=AsReleased(with_qkr))


def test_a_reduction_learns_a_bias_that_starts_at_zero() -> None:
    full = swin()
    model = ofq.quantize(full, weight_bits=32, activation_bits=32)
    bias = model.layers[1].downsample.reduction.bias
    assert full.layers[1].downsample.reduction.bias is None
    assert bias.requires_grad
    assert not bias.any()


def test_swin_mlps_have_a_scale_per_image_column(images: Tensor) -> None:
    model = ofq.quantize(swin())
    ofq.calibrate(model, images)
    scales = [m.fc1.input_quantizer.quantizer.scale.numel() for m in _mlps(model)]
    assert scales == [8, 4]


def _mlps(model: nn.Module) -> list[nn.Module]:
    return [m for n, m in model.named_modules() if n.endswith(".mlp")]


def in_released_layout(model: nn.Module) -> dict[str, Tensor]:
    """A DeiT's state as the released code names it, with the tensors that we drop."""
    theirs = {ours: name for name, ours in _PARTS.items()}
    longest_first = "|".join(map(re.escape, sorted(theirs, key=len, reverse=True)))
    part = re.compile(rf"(?<![^.])({longest_first})(?![^.])")
    state = {part.sub(lambda m: theirs[m[0]], n): t for n, t in model.state_dict().items()}
    released = {n: t.float()[None] if n.endswith("signed") else t for n, t in state.items()}
    for name in [n for n in released if n.endswith("mlp.fc1.weight")]:
        released[name.removesuffix("weight") + "statsq_fn.clip_val"] = torch.ones(1)
    _put_shifts_together(released)
    return released


def _put_shifts_together(released: dict[str, Tensor]) -> None:
    for name in [n for n in released if n.endswith("scores.q_quantizer.before")]:
        owner = name.removesuffix("scores.q_quantizer.before")
        parts = [released.pop(f"{owner}scores.{p}_quantizer.before") for p in "qk"]
        parts.append(released.pop(f"{owner}move_v_b4.bias"))
        released[f"{owner}move_qkv_b4.bias"] = torch.cat(parts)
        released[f"{owner}move_k_aft.bias"] = torch.ones(len(parts[1]))


@pytest.mark.parametrize("qkr", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_checkpoint_loads_before_calibration(
    images: Tensor, qkr: bool, prefix: str
) -> None:
    trained = ofq.quantize(vit(), qkr=qkr)
    ofq.calibrate(trained, images)
    for parameter in trained.parameters():
        parameter.data += 0.01 * torch.rand_like(parameter)
    state = {f"{prefix}{n}": t for n, t in in_released_layout(trained).items()}
    assert any("input_quant_fn.s" in name for name in state)
    fresh = ofq.quantize(vit(), qkr=qkr)
    converted = convert_released_state(state, fresh)
    fresh.load_state_dict(converted.state)
    assert torch.equal(fresh.eval()(images), trained.eval()(images))
    dropped = {name.removesuffix(".bias").rpartition(".")[2] for name, _ in converted.dropped}
    assert dropped == ({"clip_val"} if qkr else {"clip_val", "move_k_aft"})
    assert all(reason for _, reason in converted.dropped)


def test_a_checkpoint_that_does_not_fit_is_refused_with_all_reasons(images: Tensor) -> None:
    model = ofq.quantize(vit())
    ofq.calibrate(model, images)
    state = in_released_layout(model)
    del state["norm.weight"]
    state["blocks.0.attn.mystery"] = torch.ones(1)
    state["blocks.0.mlp.fc1.bias"] = torch.ones(3)
    state["blocks.0.mlp.fc2.input_quant_fn.s"] = torch.ones(7)
    with pytest.raises(UserError) as error:
        convert_released_state(state, model)
    message = str(error.value)
    assert "missing: norm.weight;" in message
    assert "left over: blocks.0.attn.mystery;" in message
    assert "blocks.0.mlp.fc1.bias (3,) for (48,)" in message
    assert "blocks.0.mlp.fc2.input_quant_fn.s (7,) for (5,)" in message


def test_a_checkpoint_with_qkr_does_not_fit_a_model_without(images: Tensor) -> None:
    model = ofq.quantize(vit(), qkr=True)
    ofq.calibrate(model, images)
    with pytest.raises(UserError, match=r"bits, QKR, size.*missing.*left over"):
        convert_released_state(in_released_layout(model), ofq.quantize(vit()))


def test_an_oscillating_weight_freezes_at_the_average_of_its_codes() -> None:
    start = torch.tensor([[0, 0]], dtype=torch.int8)
    history = FreezingHistory(start, threshold=0.3, momentum=0.25)
    for code in (1, 0, 1, 0):
        history.observe(torch.tensor([[code, 0]], dtype=torch.int8))
    assert history.frozen.tolist() == [[True, False]]
    later = torch.tensor([[-2, -2]], dtype=torch.int8)
    assert history.hold(later).tolist() == [[0, -2]]
