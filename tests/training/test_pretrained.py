"""QAT that starts from pretrained weights, and is taught by the model that has them."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file

import ofq
from ofq.config import Quantization, Workspace
from ofq.config.schema import HUB
from ofq.errors import UserError
from ofq.quantization import calibrate
from ofq.stopping import StopRequest
from ofq.training import models
from ofq.training.build import Inputs
from ofq.training.build import build as make
from ofq.training.checkpoint import CheckpointStore
from ofq.training.objective import Distillation
from ofq.training.trainer import Session
from ofq.training.weights import load_weights, read_weights, save_weights

from tests.support.own_process import run_ofq

MICRO = "micro_deit_patch2_8"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SMALL_SWIN = {
    "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 12,
    "depths": (2, 1), "num_heads": (1, 2),
}  # fmt: skip


@pytest.fixture
def pretrained(checkout):
    """A checkout whose recipe has no ``fp`` stage, but a file of weights; and those weights."""
    torch.manual_seed(1)
    weights = models.build(MICRO, 10).state_dict()
    save_file(weights, checkout / "start.safetensors")
    recipe = checkout / "config/recipes/small.yaml"
    text = recipe.read_text().replace("  fp: {", "  # fp: {")
    recipe.write_text(f"{text}\npretrained: start.safetensors\n")
    return checkout, weights


def trainer(checkout, part, tmp_path, **files):
    runs = Workspace(checkout).grid("tiny").runs()
    config = next(run.config for name, run in runs.items() if part in name)
    stop, store = StopRequest(), CheckpointStore(tmp_path / "checkpoint")
    return make(config, Inputs(**files), Session(checkpoints=store, stop=stop))


def build(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **(SMALL_SWIN if "swin" in name else SMALL))
    for tensor in model.parameters():  # biases start at zero, which would hide a lost one
        torch.nn.init.normal_(tensor)
    return model


@pytest.mark.parametrize("qkr", [False, True])
@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_all_weights_arrive_in_the_quantized_model(name, qkr, tmp_path):
    source, path = build(name), tmp_path / "weights.pth"
    torch.save({"model": source.state_dict()}, path)
    fresh = timm.create_model(name, num_classes=5, **(SMALL_SWIN if "swin" in name else SMALL))
    arrived = dict(ofq.quantize(load_weights(fresh, path), qkr=qkr).named_parameters())
    for key, tensor in source.named_parameters():
        if key.endswith("attn.qkv.weight") and qkr:
            place = key.removesuffix("qkv.weight") + "scores."
            names = ("merged.q_weight", "merged.k_weight", "v.weight")
            found = torch.cat([arrived.pop(place + part) for part in names])
        elif key.endswith("attn.qkv.bias") and qkr:  # QKR has no biases of query and key
            found = arrived.pop(key.replace("qkv", "scores.v"))
            tensor = tensor.chunk(3)[2]
        else:
            key = key.replace("attn.qkv.", "attn.scores.qkv.")
            key = key.replace("relative_position_bias_table", "bias.table")
            found = arrived.pop(key)
        assert torch.equal(found, tensor), key
    new = {key.rpartition(".")[2] for key in arrived if "reduction.bias" not in key}
    assert new <= {"scale", "before", "after"}


def test_training_starts_from_the_weights_and_is_taught_by_them(pretrained, tmp_path):
    checkout, weights = pretrained
    path = checkout / "start.safetensors"
    made = trainer(checkout, "w2a2-lsq-s0", tmp_path, pretrained=path)
    state = made.model.state_dict()
    assert torch.equal(state["blocks.3.attn.proj.weight"], weights["blocks.3.attn.proj.weight"])
    assert torch.equal(
        state["blocks.0.attn.scores.qkv.weight"], weights["blocks.0.attn.qkv.weight"]
    )
    assert isinstance(made.objective, Distillation)
    teacher = made.objective.teacher.model.state_dict()
    assert all(torch.equal(teacher[name], tensor) for name, tensor in weights.items())


def test_annealing_is_taught_by_the_pretrained_model_too(pretrained):
    checkout, _ = pretrained
    runs = Workspace(checkout).grid("tiny").runs().values()
    assert {run.config.pretrained for run in runs} == {"start.safetensors"}
    assert all(run.teacher is None for run in runs)
    assert {run.config.stage for run in runs} == {"fp", "qat", "cga"}


def test_other_weights_make_other_runs(pretrained):
    checkout, _ = pretrained
    before = set(Workspace(checkout).grid("tiny").runs())
    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text().replace("start.safetensors", "other.pth"))
    assert not before & set(Workspace(checkout).grid("tiny").runs())


@pytest.mark.slow
def test_run_trains_from_a_file_in_the_checkout(pretrained):
    checkout, _ = pretrained
    runs = list(Workspace(checkout).grid("tiny").runs())
    run = next(name for name in runs if "w2a2-lsq" in name)
    done = run_ofq(checkout, "train", "--no-track", run)
    assert done.returncode == 0, done.stderr
    (checkout / "start.safetensors").unlink()
    done = run_ofq(checkout, "train", "--no-track", runs[1])
    assert done.returncode == 2
    assert "small.yaml: key 'pretrained' is 'start.safetensors': no such file" in done.stderr


def test_hub_weights_are_asked_of_timm(monkeypatch):
    asked = {}

    def create(name, **options):
        asked.update(options, name=name)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", create)
    models.from_hub("deit_tiny_patch16_224", 1000)
    options = {"pretrained": True, "num_classes": 1000, "drop_path_rate": 0.0}
    assert asked == {"name": "deit_tiny_patch16_224", **options}


def test_recipe_that_says_true_takes_the_hub_weights(pretrained, tmp_path, monkeypatch):
    checkout, weights = pretrained
    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text().replace("start.safetensors", "true"))
    configs = [run.config for run in Workspace(checkout).grid("tiny").runs().values()]
    assert {config.pretrained for config in configs} == {HUB}
    source = models.build(MICRO, 10)
    source.load_state_dict(weights)
    monkeypatch.setattr(models, "from_hub", lambda *given: source)
    made = trainer(checkout, "w2a2-lsq-s0", tmp_path)
    assert torch.equal(made.model.state_dict()["pos_embed"], weights["pos_embed"])
    assert made.objective.teacher.model is source


def test_failed_download_says_that_a_file_will_do(monkeypatch):
    def create(name, **options):
        raise FileNotFoundError("can't reach the hub\nat all")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UserError, match=r"can't reach the hub; .* give the file as 'pretrained'"):
        models.from_hub("deit_tiny_patch16_224", 1000)


@pytest.mark.parametrize(
    ("name", "classes", "words"),
    [(MICRO, 10, "no pretrained"), ("deit_tiny_patch16_224", 10, "for 1000 classes")],
)
def test_hub_without_fitting_weights_is_explained(name, classes, words):
    with pytest.raises(UserError, match=words):
        models.from_hub(name, classes)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_every_common_form_of_file_is_read(tmp_path, container, prefix):
    state = {f"{prefix}weight": torch.ones(2), f"{prefix}bias": torch.zeros(2)}
    args = argparse.Namespace(lr=0.1, bits=[2, 2])
    path = tmp_path / "weights.pth"
    torch.save(state if container is None else {container: state, "args": args, "epoch": 3}, path)
    assert read_weights(path).keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    "name", ["_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "module.module.{}"]
)
def test_prefixes_of_wrapped_models_are_taken_off(tmp_path, name):
    state = {name.format(key): torch.ones(1) for key in ("a.weight", "a.bias")}
    state[name.format("blocks.0._orig_mod.fc")] = torch.ones(1)
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    assert read_weights(tmp_path / "weights.pth").keys() == {"a.weight", "a.bias", "blocks.0.fc"}


def test_weights_with_a_prefix_and_without_are_refused(tmp_path):
    torch.save({"module.a": torch.ones(1), "a": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds a twice"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["state_dict", "state_dict_ema"], "state_dict_ema"),
        (["model", "model_ema"], "model_ema"),
        (["model", "state_dict"], "state_dict"),
        (["model", "state_dict", "model_ema", "state_dict_ema"], "state_dict_ema"),
    ],
)
def test_of_several_weights_timms_choice_is_taken_and_said(tmp_path, names, taken):
    content = {name: {"weight": torch.full((1,), float(n))} for n, name in enumerate(names)}
    torch.save(content, tmp_path / "weights.pth")
    said = []
    found = read_weights(tmp_path / "weights.pth", said.append)
    assert torch.equal(found["weight"], content[taken]["weight"])
    assert len(said) == 1
    assert f"{taken} is taken" in said[0]
    assert all(name in said[0] for name in names)
    theirs = timm.models.load_state_dict(str(tmp_path / "weights.pth"))
    assert torch.equal(theirs["weight"], found["weight"])


def test_averaged_weights_that_are_none_are_passed_over_without_a_word(tmp_path):
    content = {"state_dict": {"weight": torch.ones(1)}, "state_dict_ema": None}
    torch.save(content, tmp_path / "weights.pth")
    said = []
    assert read_weights(tmp_path / "weights.pth", said.append).keys() == {"weight"}
    assert not said


def microsofts(state):
    """Swin's weights under the names of its authors' code."""
    renamed = {}
    for name, tensor in state.items():
        for stage in (1, 2, 3):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        renamed[name.replace("head.fc.", "head.")] = tensor
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return renamed


def test_swin_in_its_authors_layout_loads(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    source, fresh = build(name), timm.create_model(name, num_classes=5, **SMALL_SWIN)
    torch.save({"model": microsofts(source.state_dict())}, tmp_path / "swin.pth")
    loaded = load_weights(fresh, tmp_path / "swin.pth").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in source.state_dict().items())


def test_weights_that_timms_filter_would_resize_are_refused(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    torch.save({"model": microsofts(build(name).state_dict())}, tmp_path / "swin.pth")
    other = timm.create_model(name, num_classes=5, **(SMALL_SWIN | {"window_size": 2}))
    with pytest.raises(UserError, match="weights of another model"):
        load_weights(other, tmp_path / "swin.pth")


def test_page_saved_in_place_of_weights_is_told_as_such(tmp_path):
    (tmp_path / "weights.pth").write_text("\n<!DOCTYPE html><html><body>Not found</body></html>")
    with pytest.raises(UserError, match=r"weights.pth: an HTML or XML page"):
        read_weights(tmp_path / "weights.pth")


def test_checkpoint_that_was_cut_is_told_as_such(tmp_path):
    torch.save({"weight": torch.ones(1000)}, tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(content[:-100])
    with pytest.raises(UserError, match="cut off or damaged") as caught:
        read_weights(tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [torch.int64, torch.bool])
def test_weights_of_another_type_of_numbers_are_refused(tmp_path, wrong):
    state = models.build(MICRO, 10).state_dict()
    state["head.bias"] = state["head.bias"].to(wrong)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"of another type: head.bias {wrong}"):
        load_weights(models.build(MICRO, 10), tmp_path / "weights.pth")


class Evil:
    def __reduce__(self):
        return print, ("code of the file's own",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {"a": torch.ones(1)}, "extra": Evil()}, "safely.*print"),
        ({"epoch": 3}, "holds no weights"),
        ([torch.ones(1)], "holds no weights"),
        ({}, "holds no weights"),
    ],
)
def test_file_without_plain_weights_is_refused(tmp_path, content, words, capsys):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"weights.pth: .*{words}"):
        read_weights(tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.pt"])
def test_damaged_and_missing_files_are_explained(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_weights(tmp_path / name)
    for content in (b"", b"not weights", b"PK\x03\x04 neither"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: "):
            read_weights(tmp_path / name)


def test_weights_of_another_model_name_what_differs(tmp_path):
    state = models.build(MICRO, 10).state_dict()
    state["surplus"] = state.pop("cls_token")
    state["head.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError) as caught:
        load_weights(models.build(MICRO, 10), tmp_path / "weights.safetensors")
    words = ["missing: cls_token", "unexpected: surplus", "head.bias (7,) for (10,)"]
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("bits", "quantizer", "told"),
    [
        ("W2A2", "statsq", None),
        ("W2A2", "lsq_statistical", "fc1 is statsq at 2 bits, not lsq_statistical at 2 bits"),
        ("W3A2", "statsq", "fc1 is statsq at 2 bits, not statsq at 3 bits"),
        ("W2A4", "statsq", "is 2 bits, not 4 bits"),
        ("W32A2", "statsq", "fc1 is statsq at 2 bits, not quantized"),
    ],
)
def test_weights_that_were_quantized_otherwise_are_refused(tmp_path, bits, quantizer, told):
    """Their tensors alone would fit."""

    def made(bits, quantizer):
        wanted = Quantization(bits=bits, weight_quantizer=quantizer, layers={"*.attn.*": "W2A2"})
        return models.quantized(models.build(MICRO, 10), wanted)

    model = made("W2A2", "statsq")
    calibrate(model, torch.rand(2, 1, 8, 8))
    save_weights(model, tmp_path / "weights.safetensors")
    if told is None:
        loaded = load_weights(made(bits, quantizer), tmp_path / "weights.safetensors").state_dict()
        assert all(torch.equal(loaded[n], t) for n, t in model.state_dict().items())
        return
    with pytest.raises(UserError, match="quantized otherwise") as caught:
        load_weights(made(bits, quantizer), tmp_path / "weights.safetensors")
    assert told in str(caught.value)


def test_weights_with_unquantized_layers_are_refused_by_a_model_that_quantizes_them(tmp_path):
    half = models.quantized(
        models.build(MICRO, 10), Quantization(bits="W32A2", weight_quantizer="statsq")
    )
    calibrate(half, torch.rand(2, 1, 8, 8))
    save_weights(half, tmp_path / "weights.safetensors")
    whole = models.quantized(
        models.build(MICRO, 10), Quantization(bits="W2A2", weight_quantizer="statsq")
    )
    with pytest.raises(UserError, match="is unquantized, not statsq at 2 bits"):
        load_weights(whole, tmp_path / "weights.safetensors")
