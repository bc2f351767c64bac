"""Quantizing, calibrating and tracking refuse what doesn't fit, in one line."""

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import ofq
from ofq.errors import UserError
from ofq.quantization.quantizers.lsq import LSQ
from ofq.quantization.techniques.dampening import Dampening
from ofq.quantization.techniques.freezing import IterativeFreezing

VIT = {
    "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5,
}  # fmt: skip
SWIN = {
    "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 12, "depths": (2, 1),
    "num_heads": (1, 2), "num_classes": 5,
}  # fmt: skip
ADDED = ("before", "after", "scale")
"""Ends of the names of parameters that quantization adds."""


def build(name="vit", **options):
    if name == "swin":
        return timm.create_model("swin_tiny_patch4_window7_224", **SWIN | options)
    return timm.create_model("deit_tiny_patch16_224", **VIT | options)


def images(size=32, **options):
    return torch.rand(2, 3, size, size, **options)


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("qkr", [False, True, "lowrank"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_frozen_weights_stay_frozen(name, qkr):
    model = ofq.quantize(build(name).requires_grad_(False), qkr=qkr)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert [n for n in trainable if not n.endswith(ADDED)] == []


@pytest.mark.parametrize("qkr", [False, True, "lowrank"])
def test_only_frozen_layers_are_frozen(qkr):
    model = build()
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    quantized = ofq.quantize(model, qkr=qkr)
    frozen = {n for n, p in quantized.named_parameters() if not p.requires_grad}
    weights = {
        False: {"qkv.weight"},
        True: {"merged.q_weight", "merged.k_weight", "v.weight"},
        "lowrank": {"q.0.weight", "q.1.weight", "k.0.weight", "k.1.weight", "v.weight"},
    }
    scores = "blocks.0.attn.scores."
    assert frozen == {"head.bias", *(f"{scores}{n}" for n in weights[qkr])}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("qkr", [False, True, "lowrank"])
def test_weights_keep_their_dtype_and_calibration_wants_float32(qkr, dtype):
    model = ofq.quantize(build("swin").to(dtype), qkr=qkr)
    taken = [p.dtype for n, p in model.named_parameters() if not n.endswith(ADDED)]
    assert set(taken) == {dtype}
    text = refusal(ofq.calibrate, model, images(dtype=dtype))
    assert str(dtype) in text
    assert "allowed: torch.float32" in text
    ofq.calibrate(model.float(), images())


def test_model_made_half_after_calibration_is_refused():
    model = ofq.quantize(build())
    ofq.calibrate(model, images())
    assert "torch.float16; allowed: torch.float32" in refusal(
        model.half().eval(), images(dtype=torch.float16)
    )


def test_calibration_under_autocast_and_by_half_images_sets_float32_scales():
    model = ofq.quantize(build(), qkr=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ofq.calibrate(model, images(dtype=torch.float16))
    scales = [m.scale for m in model.modules() if isinstance(m, LSQ)]
    assert all(scale.dtype == torch.float32 and scale.numel() for scale in scales)


@pytest.mark.parametrize("copied", [ModelEmaV3, torch.optim.swa_utils.AveragedModel, copy.deepcopy])
def test_copy_before_calibration_is_refused_and_after_it_works(copied):
    model = ofq.quantize(build())
    text = refusal(copied, model)
    assert "ofq.calibrate" in text
    assert "first" in text
    ofq.calibrate(model, images())
    twin = copied(model)
    twin = getattr(twin, "module", twin)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one is not other
    model.eval()
    assert torch.equal(model(images(generator=torch.manual_seed(0))),
                       twin.eval()(images(generator=torch.manual_seed(0))))  # fmt: skip


def test_average_follows_a_calibrated_model():
    model = ofq.quantize(build())
    ofq.calibrate(model, images())
    average = ModelEmaV3(model, decay=0.5)
    before = model.head.bias.detach().clone()
    with torch.no_grad():
        model.head.bias += 1
    average.update(model)
    torch.testing.assert_close(average.module.head.bias, before + 0.5)


@pytest.mark.parametrize(("name", "options", "tokens"), [
    ("vit", {}, (64, 16)),
    ("vit", {"dynamic_img_size": True}, (64, 16)),
    ("swin", {}, (256, 64)),
])  # fmt: skip
def test_another_image_size_is_refused_with_its_number_of_tokens(name, options, tokens):
    model = ofq.quantize(build(name, **options))
    text = refusal(ofq.calibrate, model, images(64))
    for words in ("64 x 64", "32 x 32", f"{tokens[0]} patches", f"{tokens[1]} patches", "img_size"):
        assert words in text
    other = ofq.quantize(build(name, img_size=64, **options))
    ofq.calibrate(other, images(64))
    assert torch.isfinite(other(images(64))).all()


def test_another_image_size_after_calibration_is_refused():
    model = ofq.quantize(build(dynamic_img_size=True))
    ofq.calibrate(model, images())
    assert "64 patches" in refusal(model, images(64))


def test_model_of_no_fixed_number_of_tokens_is_refused():
    assert "patch_drop_rate=0" in refusal(ofq.quantize, build(patch_drop_rate=0.5))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda x: x.masked_fill(x > 0.9, float("nan")), ["2 of 2", "NaN or inf"]),
        (lambda x: x.index_fill(0, torch.tensor([1]), float("inf")), ["1 of 2", "NaN or inf"]),
        (lambda x: x[:0], ["none", "(0, 3, 32, 32)"]),
        (lambda x: (255 * x).to(torch.uint8), ["torch.uint8", "floating-point"]),
        (lambda x: x[:, :1], ["(2, 1, 32, 32)", "3 channels"]),
        (lambda x: x[0], ["(3, 32, 32)", "(B, 3, 32, 32)"]),
        (lambda x: x.numpy(), ["ndarray", "tensor"]),
        (lambda x: (x, x), ["tuple", "tensor"]),
        (lambda x: x.to("meta"), ["on meta", "on cpu"]),
    ],
)
def test_images_that_cannot_calibrate_are_refused(given, words):
    model = ofq.quantize(build())
    text = refusal(ofq.calibrate, model, given(images()))
    assert text.startswith("images: ")
    assert all(word in text for word in words)


def test_weights_that_are_not_finite_are_refused_by_calibration():
    model = ofq.quantize(build())
    model.blocks[0].mlp.fc1.weight.data[0, 0] = float("nan")
    assert "blocks.0.mlp" in refusal(ofq.calibrate, model, images())
    assert all(not m.scale.numel() for n, m in model.named_modules() if isinstance(m, LSQ)
               and "weight_quantizer" not in n)  # fmt: skip


def test_first_training_batch_sets_the_scales_where_nothing_was_calibrated():
    """As in the released code, whose scales are made by the first forward pass."""
    model, twin = (ofq.quantize(build()).train() for _ in range(2))
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if v.numel()}, strict=False)
    batch = images()
    model(batch).sum().backward()
    ofq.calibrate(twin, batch)
    scales = [m.scale for m in model.modules() if isinstance(m, LSQ)]
    assert all(scale.numel() and scale.grad is not None for scale in scales)
    assert all(
        torch.equal(a.scale, b.scale)
        for a, b in zip(model.modules(), twin.modules(), strict=True)
        if isinstance(a, LSQ)
    )


def test_second_calibration_forgets_the_first():
    model, other = ofq.quantize(build()), images()
    ofq.calibrate(model, 100 * images())
    ofq.calibrate(model, other)
    once = {n: p.clone() for n, p in model.named_parameters()}
    ofq.calibrate(model, other)
    assert all(torch.equal(once[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    "use",
    [
        lambda m: ofq.calibrate(m, images()),
        ofq.OscillationTracker,
        ofq.ConfidenceGuidedAnnealing,
        ofq.NoiseInjection,
        IterativeFreezing,
        lambda m: Dampening(m, 1.0),
    ],
)
def test_unquantized_model_is_refused_wherever_a_quantized_one_is_needed(use):
    text = refusal(use, build())
    assert "VisionTransformer isn't quantized" in text
    assert "ofq.quantize" in text


def parallel(model):
    """A DistributedDataParallel as far as its class goes; a real one needs a process group."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, parallel])
def test_wrapped_model_is_tracked_and_annealed_as_itself_but_not_quantized(wrap):
    assert "then wrap" in refusal(ofq.quantize, wrap(build()))
    model = ofq.quantize(build())
    ofq.calibrate(model, images())
    plain = [part.layer for part in ofq.OscillationTracker(model).summary()]
    wrapped = wrap(model)
    assert [part.layer for part in ofq.OscillationTracker(wrapped).summary()] == plain
    assert ofq.ConfidenceGuidedAnnealing(wrapped).frozen_share() > 50


def test_compiled_model_is_calibrated_as_itself_and_a_data_parallel_one_is_refused():
    model = ofq.quantize(build())
    ofq.calibrate(torch.compile(model), images())
    assert torch.isfinite(model(images())).all()
    assert "DistributedDataParallel" in refusal(ofq.calibrate, parallel(model), images())
    assert "DistributedDataParallel" in refusal(
        ofq.calibrate, torch.compile(parallel(model)), images()
    )
