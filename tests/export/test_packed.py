"""Packed files: bits in bytes beside plain Python, logits beside the model that was exported."""

import importlib
import json
import sys
from functools import partial

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import ofq
from ofq.cli import app
from ofq.config import Quantization, Workspace
from ofq.config.run import describe
from ofq.errors import UserError
from ofq.export import packed as export
from ofq.export.codes import hold_weights, pack, pack_weights, unpack
from ofq.export.packed import load_packed, save_packed
from ofq.models import building
from ofq.quantization import calibrate
from ofq.quantization.layers import Passthrough, QuantizedLinear
from ofq.quantization.quantizers.base import make_weight_quantizer, weight_quantizers
from ofq.quantization.quantizers.lsq import LSQ
from ofq.runs.attempt import run_folder
from ofq.runs.export import export_run
from ofq.training import models
from ofq.training.weights import save_weights

MICRO = "micro_deit_patch2_8"
SWIN = "swin_tiny_patch4_window7_224"
SMALL_SWIN = {
    "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (2, 2),
    "num_heads": (2, 3),
}  # fmt: skip
METHODS = {
    "lsq": {"weight_quantizer": "lsq"},
    "statsq": {"weight_quantizer": "statsq"},
    "statsq+qkr": {"weight_quantizer": "statsq", "qkr": True},
}


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)


def trained(name, quantization, images, classes=10):
    """A quantized model in a state as after training: no scale, shift or norm is as it began."""
    model = models.quantized(models.build(name, classes), quantization)
    calibrate(model, images)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LSQ):
                module.scale *= 0.5 + torch.rand_like(module.scale)
        for parameter_name, parameter in model.named_parameters():
            if not parameter_name.endswith("scale"):
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def micro(bits, method="statsq", **more):
    quantization = Quantization(bits=bits, **METHODS[method], **more)
    return trained(MICRO, quantization, torch.rand(16, 1, 8, 8))


def exported(model, path):
    save_packed(model, path, name=MICRO)
    return path


def contents(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["ofq"])


@st.composite
def codes(draw):
    bits = draw(st.integers(2, 8))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 40)))
    numbers = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return bits, draw(arrays(np.int8, shape, elements=numbers))


def packed_plainly(row, bits):
    """One row's bytes: each code's two's complement at its place in one long number."""
    number = sum((int(code) % 2**bits) << (bits * place) for place, code in enumerate(row))
    return number.to_bytes(-(-len(row) * bits // 8), "little")


@given(codes())
def test_codes_are_packed_as_by_plain_arithmetic_and_come_back(drawn):
    bits, rows = drawn
    packed = pack(torch.from_numpy(rows), bits)
    assert [row.numpy().tobytes() for row in packed] == [packed_plainly(row, bits) for row in rows]
    assert unpack(packed, bits, rows.shape[1]).numpy().tolist() == rows.tolist()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", sorted(weight_quantizers))
def test_every_quantizer_decodes_to_what_it_computes(name, bits):
    layer = nn.Linear(203, 57)
    layer.weight.data[3] = 0
    layer.weight.data[5, 0] = 40.0
    quantizer = make_weight_quantizer(name, bits, layer.weight)
    thresholds = torch.arange(-101, 102) / 2 * quantizer.step_size(layer.weight)[7]
    layer.weight.data[7] = thresholds * (1 + 6e-8 * torch.randint(-2, 3, (203,)))
    model = nn.Sequential(QuantizedLinear(layer, quantizer, Passthrough(), {}))
    expected = quantizer(layer.weight)
    packed = pack_weights(model)
    held = hold_weights(model, packed)
    assert torch.equal(held[0].weight, expected)
    assert packed["0"].codes.shape == (57, -(-203 * bits // 8))


@pytest.mark.parametrize("bits", ["W2A2", "W3A3", "W4A4"])
@pytest.mark.parametrize("method", METHODS)
def test_packed_model_has_the_logits_of_the_one_exported(method, bits, tmp_path):
    model = micro(bits, method)
    loaded = load_packed(exported(model, tmp_path / "packed.safetensors"))
    assert not loaded.training
    images = torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_packed_swin_has_the_logits_of_the_one_exported(tmp_path, monkeypatch):
    make = partial(timm.create_model, SWIN, num_classes=7, **SMALL_SWIN)
    for module in (building, models):
        monkeypatch.setattr(module, "build", lambda *given, args=None: make())
    quantization = Quantization(bits="W3A3", weight_quantizer="statsq", qkr=True)
    model = trained(SWIN, quantization, torch.rand(4, 3, 32, 32), classes=7)
    path = tmp_path / "packed.safetensors"
    ofq.save_packed(model, path)  # timm noted the name
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_packed(path)(images), model(images))


def test_parts_at_other_bits_or_none_keep_theirs(tmp_path):
    more = {"layers": {"blocks.0.*": "W32A32", "blocks.1.mlp.fc1": "W5A4"}, "ends": "W4A8"}
    model = micro("W2A2", **more)
    path = exported(model, tmp_path / "packed.safetensors")
    forms = {form["layer"]: form["bits"] for form in contents(path)["weights"]}
    assert not any(layer.startswith("blocks.0.") for layer in forms)
    assert (forms["patch_embed.proj"], forms["blocks.1.mlp.fc1"], forms["head"]) == (4, 5, 4)
    images = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_packed(path)(images), model(images))


def test_weights_take_their_bits_and_scales_and_nothing_else_is_kept_of_them(tmp_path):
    model = micro("W3A3", "statsq+qkr")
    path = exported(model, tmp_path / "packed.safetensors")
    tensors = load_file(path)
    size = {n: t.numel() * t.element_size() for n, t in tensors.items()}
    assert size["blocks.0.mlp.fc1.weight.codes"] == 192 * 48 * 3 / 8
    assert size["blocks.0.mlp.fc1.weight.scale"] == 192 * 4
    assert size["blocks.0.attn.scores.merged.weight.codes"] == 3 * 48 * 48 * 3 / 8
    assert size["head.weight.codes"] == 10 * 48
    assert size["patch_embed.proj.weight.codes"] == 48 * 4
    layers = {form["layer"] for form in contents(path)["weights"]}
    assert not any(f"{layer}.weight" in tensors for layer in layers)
    assert not any("q_weight" in n or "weight_quantizer" in n for n in tensors)
    others = {t.dtype for n, t in tensors.items() if not n.endswith(("codes", "has_negative"))}
    assert others == {torch.float32}
    assert sum(size.values()) < path.stat().st_size < sum(size.values()) + 40_000


def test_metadata_name_all_that_rebuilds_the_model(tmp_path):
    model = micro("W2A4", "statsq+qkr", module="ofq.quantization")
    found = contents(exported(model, tmp_path / "packed.safetensors"))
    assert (found["model"], found["classes"]) == (MICRO, 10)
    assert found["quantization"]["bits"] == "W2A4"
    assert "modules" not in found
    assert {
        "layer": "blocks.0.attn.scores.merged", "quantizer": "statsq", "bits": 2, "shape": [144, 48]
    } in found["weights"]  # fmt: skip


class Opposite(ofq.StatsQ):
    """Says of its codes the opposite of what it computes."""

    def decode(self, codes, scale):
        return -super().decode(codes, scale)


class Mute(ofq.StatsQ):
    """Doesn't say what its codes stand for."""

    decode = ofq.WeightQuantizer.decode


@pytest.mark.parametrize(
    ("quantizer", "said"), [(Opposite, "other values by decode"), (Mute, "Mute has no decode")]
)
def test_quantizer_that_misstates_its_codes_is_refused(quantizer, said, tmp_path):
    model = micro("W2A2")
    model.blocks[0].mlp.fc1.weight_quantizer = quantizer(2)
    with pytest.raises(UserError, match=said):
        exported(model, tmp_path / "packed.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("made", "given", "said"),
    [
        ({"depth": 1}, {}, r"deit_tiny_.* no further arguments has other weights .*`model_args`"),
        ({"depth": 1}, {"model_args": {"depth": 2}}, r"\{'depth': 2\} has other weights"),
        ({"depth": 1}, {"model_args": {"depth": (1,)}}, "model_args: 'depth' is .* allowed: a num"),
        ({"depth": 1}, {"model_args": {"pretrained": True}}, "'pretrained' isn't the model's own"),
        ({"depth": 1}, {"name": "deit_tinny"}, "unknown model 'deit_tinny'; timm has: "),
    ],
)
def test_model_that_its_file_would_not_make_anew_is_refused(made, given, said, tmp_path):
    full = timm.create_model("deit_tiny_patch16_224", num_classes=3, **made)
    model = ofq.quantize(full, 2, 32)
    path = tmp_path / "packed.safetensors"
    ofq.calibrate(model, torch.rand(1, 3, 224, 224))
    with pytest.raises(UserError, match=said) as caught:
        ofq.save_packed(model, path, **given)
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_model_of_timm_is_packed_by_what_timm_noted_also_inside_a_wrapper(tmp_path):
    full = timm.create_model("deit_tiny_patch16_224", num_classes=3, depth=1, img_size=32)
    model = ofq.quantize(full, 2, 4, qkr="lowrank", layer_bits={"blocks.0.mlp.*": [3, 3]})
    images = torch.rand(2, 3, 32, 32)
    ofq.calibrate(model, images)
    path = tmp_path / "packed.safetensors"
    args = {"depth": 1, "img_size": 32}
    ofq.save_packed(nn.DataParallel(model), str(path), model_args=args)
    with torch.no_grad():
        assert torch.equal(ofq.load_packed(str(path))(images), model.eval()(images))


def test_model_without_scales_name_or_quantization_is_refused(tmp_path):
    path, model = tmp_path / "packed.safetensors", ofq.quantize(models.build(MICRO, 10))
    with pytest.raises(UserError, match=r"isn't calibrated: patch_embed.*ofq.calibrate"):
        ofq.save_packed(model, path, name=MICRO)
    with pytest.raises(UserError, match="doesn't say by which name timm made it; give it as"):
        ofq.save_packed(micro("W2A2"), path)
    with pytest.raises(UserError, match=r"isn't quantized; call ofq\.quantize"):
        ofq.save_packed(models.build(MICRO, 10), path, name=MICRO)


def test_missing_quantizer_of_ones_own_is_told_with_the_module_to_import(tmp_path, monkeypatch):
    (tmp_path / "halved_one.py").write_text(
        "import ofq\n"
        "@ofq.register_weight_quantizer('halved_one')\n"
        "class Halved(ofq.StatsQ):\n"
        "    def scale(self, weight):\n"
        "        return super().scale(weight) / 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("halved_one")
    model = ofq.quantize(models.build(MICRO, 10), weight_quantizer="halved_one")
    images = torch.rand(4, 1, 8, 8)
    ofq.calibrate(model, images)
    path = tmp_path / "packed.safetensors"
    ofq.save_packed(model, path, name=MICRO)
    with torch.no_grad():
        assert torch.equal(load_packed(path)(images), model.eval()(images))
    monkeypatch.delitem(weight_quantizers, "halved_one")
    said = r"'halved_one' isn't registered: import the module .*\('halved_one', the file says\)"
    with pytest.raises(UserError, match=said) as caught:
        load_packed(path)
    assert str(caught.value).isprintable()


@pytest.fixture
def packed(tmp_path):
    return exported(micro("W2A2"), tmp_path / "packed.safetensors")


def test_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_packed(tmp_path / "none.safetensors")


def test_truncated_file_is_told(packed):
    packed.write_bytes(packed.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_packed(packed)


@pytest.mark.parametrize("place", [-1000, 5000])
def test_changed_bit_is_told(packed, place):
    content = bytearray(packed.read_bytes())
    content[place] ^= 1
    packed.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|not a readable"):
        load_packed(packed)


def test_plain_weights_are_told_from_packed_ones(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="aren't packed"):
        load_packed(tmp_path / "model.safetensors")


def test_file_that_fits_no_model_here_is_told(tmp_path):
    path = exported(micro("W2A2"), tmp_path / "packed.safetensors")
    rewritten(path, lambda data: data["quantization"].update(bits="W3A2"))
    with pytest.raises(UserError, match=r"has bits 2, not 3"):
        load_packed(path)
    rewritten(path, lambda data: data["quantization"].update(bits="W2A2", qkr=True))
    with pytest.raises(UserError, match="not the quantized layers of this model"):
        load_packed(path)


def runs_of(checkout):
    workspace = Workspace(checkout)
    runs = workspace.grid("tiny").runs().values()
    return workspace, {run.config.stage: run for run in runs}


def finish(workspace, run):
    folder = run_folder(workspace, run)
    folder.open(describe(run))
    model = trained(run.config.model, run.config.quantization, torch.rand(16, 1, 8, 8))
    folder.finish({"id": run.id}, lambda path: save_weights(model, path))
    return model


@pytest.mark.parametrize("out", [None, "small.safetensors"])
def test_finished_run_is_exported_and_its_size_told(checkout, monkeypatch, out):
    workspace, runs = runs_of(checkout)
    model, run = finish(workspace, runs["cga"]), runs["cga"].id
    monkeypatch.chdir(checkout)
    done = CliRunner().invoke(app, ["export", run, *(["--out", out] if out else [])])
    assert done.exit_code == 0, done.exception
    path = checkout / (out or f"{run.rpartition('/')[2]}.packed.safetensors")
    full = sum(4 * p.numel() for p in models.build(MICRO, 10).parameters())
    size = path.stat().st_size
    share = f"1/{full / size:.2f} of the full-precision model's {full:,}"
    assert done.stdout == f"wrote {path.name}: {size:,} bytes, {share}\n"
    sizes = {"packed_bytes": size, "full_precision_bytes": full}
    assert run_folder(workspace, runs["cga"]).sizes() == sizes
    images = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_packed(path)(images), model(images))


def test_run_that_cannot_be_exported_is_told(checkout, tmp_path, monkeypatch):
    workspace, runs = runs_of(checkout)
    out = tmp_path / "packed.safetensors"
    monkeypatch.chdir(checkout)
    done = CliRunner().invoke(app, ["export", "digits/none"])
    assert isinstance(done.exception, UserError)
    assert "has a run 'digits/none'" in str(done.exception)
    done = CliRunner().invoke(app, ["export", runs["fp"].id, "--out", "packed.bin"])
    assert "expected a .safetensors or .onnx file" in str(done.exception)
    with pytest.raises(UserError, match="full-precision run"):
        export_run(workspace, runs["fp"], out)
    with pytest.raises(UserError, match="isn't finished, it is waiting; `ofq train digits/"):
        export_run(workspace, runs["qat"], out)
    finish(workspace, runs["qat"])
    weights = run_folder(workspace, runs["qat"]).path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"isn.t what was written"):
        export_run(workspace, runs["qat"], out)
    assert not out.exists()


def rewritten(path, change):
    """A packed file with other metadata, whose hash is that of what it then holds."""
    with safe_open(path, "pt") as file:
        text = file.metadata()["ofq"]
    data = json.loads(text)
    change(data)
    text, tensors = json.dumps(data), load_file(path)
    metadata = {"ofq": text, "sha256": export._sha256(text, tensors)}
    save_file(tensors, path, metadata)
    return path


def test_module_that_a_packed_file_names_is_not_imported(packed, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('was-run', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(packed, lambda data: data["quantization"].update(module="evil"))
    load_packed(packed)  # its quantizer is registered, so nothing is missing
    rewritten(packed, lambda data: data["quantization"].update(weight_quantizer="evil"))
    with pytest.raises(UserError, match=r"'evil' isn't registered: import the module .*\('evil'"):
        load_packed(packed)
    assert "evil" not in sys.modules
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(model="hf-hub:timm/vit"), "allowed in a name"),
        (lambda data: data.update(model="local-dir:/etc"), "allowed in a name"),
        (lambda data: data.update(model="vit_giant_patch14_dinov2"), "holds .* numbers, but"),
        (lambda data: data.update(model="toy_regression_999999999999"), "holds .* numbers, but"),
        (lambda data: data.update(model_args={"pretrained": True}), "'pretrained' isn't the model"),
        (lambda data: data.update(model_args={"checkpoint_path": "/x"}), "'checkpoint_path' isn't"),
        (lambda data: data.update(model_args={"depth": 50_000}), "tensors, too few for 50,000"),
        (lambda data: data.update(model_args={"img_size": 10**9}), "allowed: up to 65,536"),
        (lambda data: data.update(classes=10**12), "holds .* numbers, but"),
        (lambda data: data.update(classes=2**70), "an integer of more than 64 bits"),
        (lambda data: data.update(classes=-1), "classes"),
        (lambda data: data["weights"][0].update(bits=-2), "has bits -2"),
        (lambda data: data["weights"][0].update(bits=0), "has bits 0"),
        (lambda data: data["weights"][0].update(shape=[2**62, 2**62]), "has shape"),
        (lambda data: data["weights"][0].update(layer="__class__"), "lacks __class__.weight.codes"),
        (lambda data: data["weights"].append(data["weights"][0]), "or has two weights of"),
        (lambda data: data["weights"].pop(), "not the quantized layers|weights of another model"),
        (lambda data: data["quantization"].update(options={"self": 1}), "statsq"),
    ],
)
def test_packed_file_that_describes_no_model_is_refused_in_one_line(packed, change, message):
    rewritten(packed, change)
    with pytest.raises(UserError, match=message) as caught:
        load_packed(packed)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(packed))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("codes", lambda tensor: tensor.to(torch.int64), "has types"),
        ("scale", lambda tensor: tensor.half(), "has types"),
        ("scale", lambda tensor: tensor * float("nan"), "aren't finite"),
        ("codes", lambda tensor: tensor.repeat(2, 1), "has bytes"),
        ("codes", lambda tensor: None, "lacks .*codes"),
    ],
)
def test_packed_weight_of_other_tensors_is_refused(packed, part, change, message):
    name = f"blocks.0.mlp.fc1.weight.{part}"
    with safe_open(packed, "pt") as file:
        text = file.metadata()["ofq"]
    tensors = load_file(packed)
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    save_file(tensors, packed, {"ofq": text, "sha256": export._sha256(text, tensors)})
    with pytest.raises(UserError, match=message):
        load_packed(packed)


def test_file_that_no_export_wrote_is_not_replaced(checkout, monkeypatch):
    workspace, runs = runs_of(checkout)
    finish(workspace, runs["cga"])
    weights = run_folder(workspace, runs["cga"]).path / "model.safetensors"
    before = weights.read_bytes()
    save_file({"mine": torch.zeros(3)}, checkout / "mine.safetensors")
    (checkout / "mine.onnx").write_text("mine")
    monkeypatch.chdir(checkout)
    for out in (weights, "mine.safetensors", "mine.onnx"):
        done = CliRunner().invoke(app, ["export", runs["cga"].id, "--out", str(out)])
        assert "is there already, and isn't what this command writes" in str(done.exception)
    assert weights.read_bytes() == before
    assert (checkout / "mine.onnx").read_text() == "mine"
    for _ in range(2):  # its own file is replaced
        done = CliRunner().invoke(app, ["export", runs["cga"].id, "--out", "own.safetensors"])
        assert done.exit_code == 0
