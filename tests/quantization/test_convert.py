import copy
from functools import partial

import pytest
import timm
import torch
import torch.nn.utils.prune
from torch import nn

import ofq
from ofq.errors import UserError
from ofq.quantization import low_bit_weights, products
from ofq.quantization.layers import Passthrough, QuantizedConv2d, QuantizedLinear
from ofq.quantization.quantizers.lsq import LSQ, LSQWeight

SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}
SMALL_SWIN = {
    "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 12,
    "depths": (2, 1), "num_heads": (1, 2), "num_classes": 5,
}  # fmt: skip


def build(name):
    return timm.create_model(name, **(SMALL_SWIN if "swin" in name else SMALL))


MODELS = ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
          "swin_tiny_patch4_window7_224"]  # fmt: skip


@pytest.mark.parametrize("qkr", [False, True])
@pytest.mark.parametrize("quantizer", ["lsq", "statsq"])
@pytest.mark.parametrize("name", MODELS)
def test_techniques_compose_and_every_parameter_trains(name, quantizer, qkr):
    model = ofq.quantize(build(name), 2, 2, quantizer, qkr)
    images = torch.randn(3, 3, 32, 32)
    ofq.calibrate(model, images)
    annealing = ofq.ConfidenceGuidedAnnealing(model, 0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    model(images).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    annealing.step(optimizer)
    assert torch.isfinite(model(images)).all()


@pytest.mark.parametrize("qkr", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_unquantized_parts_compute_what_the_full_precision_model_does(name, qkr):
    """At 32 bits only first and last layers differ; put back, the logits are the model's own."""
    model = build(name).eval()
    quantized = ofq.quantize(model, 32, 32, qkr=qkr).eval()
    for module in list(quantized.modules()):
        if isinstance(module, QuantizedLinear | QuantizedConv2d):
            module.weight_quantizer, module.input_quantizer = nn.Identity(), Passthrough()
    if qkr:  # QKR drops the query and key biases
        for path, module in model.named_modules():
            if path.endswith("qkv"):
                module.bias.data[: 2 * module.in_features] = 0
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(quantized(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_all_weights_are_taken_over_and_the_model_is_left_alone(name):
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    quantized = ofq.quantize(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for key, value in model.named_parameters():
        same = [v for v in quantized.state_dict().values() if v.shape == value.shape]
        assert any(torch.equal(v, value) for v in same), key


def test_scales_follow_the_table_of_axes():
    model = ofq.quantize(build("deit_tiny_distilled_patch16_224"), 2, 3, qkr=True)
    ofq.calibrate(model, torch.randn(2, 3, 32, 32))
    tokens = 16 + 2
    sizes = {n: m.scale.numel() for n, m in model.named_modules() if isinstance(m, LSQ)}
    block = "blocks.0."
    assert sizes[f"{block}attn.scores.input_quantizer.quantizer"] == tokens
    assert sizes[f"{block}attn.scores.z_quantizer.quantizer"] == tokens * 3
    assert sizes[f"{block}attn.scores.v_quantizer.quantizer"] == 24
    assert sizes[f"{block}attn.probability_quantizer"] == tokens
    assert sizes[f"{block}mlp.fc2.input_quantizer.quantizer"] == tokens
    assert sizes["patch_embed.proj.input_quantizer.quantizer"] == 3
    assert (
        sizes["head.input_quantizer.quantizer"] == sizes["head_dist.input_quantizer.quantizer"] == 1
    )
    unsigned = {n for n, m in model.named_modules() if isinstance(m, LSQ) and not m.signed}
    assert {n.rpartition("blocks.0.")[2] for n in unsigned if "blocks.0" in n} == {
        "attn.probability_quantizer",
        "mlp.fc2.input_quantizer.quantizer",
    }


def test_ends_have_8_bits_whatever_the_blocks_have():
    model = ofq.quantize(build("deit_tiny_distilled_patch16_224"), 2, 4)
    for end in (model.patch_embed.proj, model.head, model.head_dist):
        assert isinstance(end.weight_quantizer, LSQWeight)
        assert end.weight_quantizer.bits == end.input_quantizer.quantizer.bits == 8
    assert {w.quantizer.bits for w in low_bit_weights(model)} == {2}


@pytest.mark.parametrize(("weights", "activations"), [(2, 32), (32, 2)])
def test_weights_and_activations_can_be_left_apart(weights, activations):
    model = ofq.quantize(build("deit_tiny_patch16_224"), weights, activations)
    ofq.calibrate(model, torch.randn(2, 3, 32, 32))
    assert bool(list(low_bit_weights(model))) == (weights != 32)
    inner = [m for m in model.blocks.modules() if isinstance(m, LSQ)]
    assert bool(inner) == (activations != 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"qk_norm": True}, ["blocks.0.attn", "q_norm"]),
        ({"act_layer": nn.SiLU}, ["blocks.0.mlp", "SiLU"]),
        ({"act_layer": partial(nn.GELU, approximate="tanh")}, ["blocks.0.mlp", "tanh"]),
        ({"scale_mlp_norm": True}, ["blocks.0.mlp", "LayerNorm"]),
        ({"attn_drop_rate": 0.1}, ["blocks.0.attn", "attn_drop_rate=0"]),
    ],
)
def test_parts_that_ofq_does_not_define_are_refused_by_name(options, words):
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, **options
    )
    with pytest.raises(UserError) as caught:
        ofq.quantize(model)
    assert all(word in str(caught.value) for word in words)


def test_other_models_are_refused():
    with pytest.raises(UserError, match="a ConvNeXt; allowed"):
        ofq.quantize(timm.create_model("convnext_atto"))


def test_quantized_model_is_not_quantized_again(micro_model):
    with pytest.raises(UserError, match="quantized already"):
        ofq.quantize(ofq.quantize(micro_model), weight_bits=4)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _set_nan(model):
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = float("nan")


def _share(model):
    model.blocks[1].attn.qkv.weight = model.blocks[0].attn.qkv.weight


PECULIAR = {
    "NaN": (_set_nan, "blocks.0.mlp.fc1.weight: it has NaN or inf"),
    "shared weights": (_share, "blocks.1.attn.qkv.weight, which is blocks.0.attn.qkv.weight too"),
    "shared block": (lambda m: m.blocks.__setitem__(1, m.blocks[0]), "shared weights"),
    "hook": (
        lambda m: m.blocks[0].mlp.fc1.register_forward_hook(lambda *_: None),
        "blocks.0.mlp.fc1: it has hooks",
    ),
    "pruned": (
        lambda m: nn.utils.prune.l1_unstructured(m.blocks[0].mlp.fc1, "weight", 0.5),
        "blocks.0.mlp.fc1: it has hooks",
    ),
    "parametrized": (
        lambda m: nn.utils.parametrizations.weight_norm(m.blocks[0].mlp.fc1),
        "blocks.0.mlp.fc1: it has parametrizations",
    ),
    "layer of one's own": (
        lambda m: setattr(m.blocks[0].mlp.fc1, "__class__", Doubled),
        "blocks.0.mlp.fc1: it is a Doubled",
    ),
    "forward of one's own": (
        lambda m: setattr(m.blocks[0].attn, "forward", lambda x, **_: x),
        "blocks.0.attn: it has another forward",
    ),
}


@pytest.mark.parametrize(("change", "told"), PECULIAR.values(), ids=PECULIAR)
def test_what_a_quantized_copy_would_leave_out_is_refused(micro_model, change, told):
    change(micro_model)
    with pytest.raises(UserError, match=f"can't quantize .*{told}"):
        ofq.quantize(micro_model)


@pytest.mark.parametrize("bits", [8, (8,), None, (2, 2, 2)])
def test_bits_that_are_no_pair_are_refused(micro_model, bits):
    with pytest.raises(UserError, match=r"layer_bits\['blocks.0.\*'\] .*allowed: \(weight bits"):
        ofq.quantize(micro_model, layer_bits={"blocks.0.*": bits})
    with pytest.raises(UserError, match=r"first_last_bits .*allowed: \(weight bits"):
        ofq.quantize(micro_model, first_last_bits=bits)


def test_sparse_images_are_refused(micro_model):
    with pytest.raises(UserError, match="to_dense"):
        ofq.calibrate(ofq.quantize(micro_model), torch.randn(5, 1, 8, 8).to_sparse())


def test_unknown_quantizer_lists_the_known_ones(micro_model):
    with pytest.raises(UserError, match=r"allowed:.*lsq.*statsq"):
        ofq.quantize(micro_model, weight_quantizer="statistics")


def test_calibration_gives_each_quantizer_inputs_that_are_already_quantized(micro_model):
    model = ofq.quantize(micro_model).eval()
    seen = {}
    fc2 = model.blocks[0].mlp.fc2
    fc2.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    images = torch.randn(5, 1, 8, 8)
    ofq.calibrate(model, images)
    calibrated = seen["x"]
    model(images)
    torch.testing.assert_close(seen["x"], calibrated)


def test_quantized_model_is_where_the_model_is(micro_model):
    places = {p.device.type for p in ofq.quantize(micro_model.to("meta"), qkr=True).parameters()}
    assert places == {"meta"}


def test_calibrating_again_forgets_the_first_batch(micro_model):
    images = torch.randn(5, 1, 8, 8)
    model = ofq.quantize(micro_model)
    ofq.calibrate(model, images)
    once = copy.deepcopy(model.state_dict())
    ofq.calibrate(model, 3 * torch.randn(5, 1, 8, 8))
    ofq.calibrate(model, images)
    assert all(torch.equal(once[key], value) for key, value in model.state_dict().items())


def test_user_registers_a_quantizer_of_their_own(micro_model):
    @ofq.register_weight_quantizer("halved")
    class Halved(ofq.StatsQ):
        def scale(self, weight):
            return super().scale(weight) / 2

    model = ofq.quantize(micro_model, weight_quantizer="halved")
    weight = next(low_bit_weights(model))
    expected = weight.latent().abs().mean(-1, keepdim=True)
    torch.testing.assert_close(weight.quantizer.scale(weight.latent()), expected)
    with pytest.raises(UserError, match="is registered as"):
        ofq.register_weight_quantizer("halved")(ofq.StatsQ)


@pytest.mark.parametrize("qkr", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_padding_that_gpus_want_changes_nothing(name, qkr, monkeypatch):
    ends = []
    for vectors in (1, 7):  # neither 65 tokens nor a window's 16 are a multiple of 7
        monkeypatch.setitem(products._VECTORS, "cpu", vectors)
        torch.manual_seed(0)
        images = torch.randn(3, 3, 32, 32)
        model = ofq.quantize(build(name), 2, 8, qkr=qkr).train()
        ofq.calibrate(model, images)
        logits = model(images)
        logits.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        ends.append([logits, *model.parameters(), *gradients])
    for one, other in zip(*ends, strict=True):
        assert (other - one).norm() <= 1e-3 * one.norm() + 1e-5
