"""Checkpoints in the authors' layout: imported, and evaluated as a study."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ofq
from ofq.config import Workspace
from ofq.errors import UserError
from ofq.runs.folder import RunFolder
from ofq.training import models
from ofq.training.data.source import load

from tests.support.own_process import run_ofq

ROOT = Path(__file__).parents[2]
MICRO = "micro_deit_patch2_8"

# our names → the authors', first match first
RENAMED = [
    (r"\.input_quantizer\.quantizer\.has_negative$", ".input_quant_fn.signed"),
    (r"\.weight_quantizer\.lsq\.scale$", ".lsqw_fn.s"),
    (r"\.scores\.input_quantizer\.quantizer\.scale$", ".quant_x_4_qkv.input_quant_fn.s"),
    (r"\.scores\.input_quantizer\.before$", ".quant_x_4_qkv.move_b4.bias"),
    (r"\.scores\.input_quantizer\.after$", ".quant_x_4_qkv.move_aft.bias"),
    (r"\.scores\.merged\.([qk])_weight$", r".\1.weight"),
    (r"\.scores\.z_quantizer\.quantizer\.scale$", ".quan_a_qkx_fn.s"),
    (r"\.scores\.z_quantizer\.before$", ".move_qkx_b4.bias"),
    (r"\.scores\.([qkv])_quantizer\.quantizer\.scale$", r".quan_a_\1_fn.s"),
    (r"\.scores\.([qkv])_quantizer\.before$", r".move_\1_b4.bias"),
    (r"\.scores\.([qkv])_quantizer\.after$", r".move_\1_aft.bias"),
    (r"\.scores\.(qkv|v)\.", r".\1."),
    (r"\.probability_quantizer\.scale$", ".quan_a_softmax_fn.s"),
    (r"\.input_quantizer\.quantizer\.scale$", ".input_quant_fn.s"),
    (r"\.input_quantizer\.before$", ".move_b4.bias"),
    (r"\.input_quantizer\.after$", ".move_aft.bias"),
]  # fmt: skip


def quantized(qkr, bits=2, seed=0):
    """A calibrated model, whose learnable shifts aren't zero."""
    torch.manual_seed(seed)
    model = ofq.quantize(models.build(MICRO, 10), bits, bits, qkr=qkr)
    for name, parameter in model.named_parameters():
        if name.endswith(("before", "after")):
            nn.init.normal_(parameter, std=0.05)
    ofq.calibrate(model, load("digits", MICRO, 0).train_inputs[:64])
    return model


def released_layout(model):
    """The model's state under the authors' names, with the tensors that only they have."""
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in RENAMED:
            if re.search(r"attn\.scores\.qkv\.", name):  # a linear layer like any other
                name = name.replace("scores.", "")
            name = re.sub(ours, theirs, name)
        state[name] = tensor.reshape(1) if tensor.ndim == 0 else tensor
    for block in (f"blocks.{i}.attn." for i in range(4)):
        if f"{block}qkv.weight" in state:
            shifts = [state.pop(f"{block}move_{part}_b4.bias") for part in "qkv"]
            state[f"{block}move_qkv_b4.bias"] = torch.cat(shifts)
            state[f"{block}move_k_aft.bias"] = torch.randn(48)
            state[f"{block}qkv.statsq_fn.clip_val"] = torch.ones(1)
        else:
            state[f"{block}move_qkx_aft.bias"] = torch.randn(144)
            state[f"{block}qk_quant.clip_val"] = torch.ones(1)
        state[f"{block}proj.statsq_fn.clip_val"] = torch.ones(1)
    return state


def save(model, path, prefix="module."):
    """A checkpoint as timm's CheckpointSaver writes it."""
    state = {f"{prefix}{name}": tensor for name, tensor in released_layout(model).items()}
    args = argparse.Namespace(model="deit_t", wq_bitw=2, lr=5e-4)
    content = {"epoch": 299, "arch": "deit_t", "state_dict": state, "args": args, "metric": 72.1}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def top1(model):
    data = load("digits", MICRO, 0)
    with torch.no_grad():
        right = model.eval()(data.test_inputs).argmax(-1) == data.test_targets
    return 100 * right.sum().item() / len(right)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("qkr", [False, True])
def test_checkpoint_is_imported_and_every_dropped_tensor_explained(tmp_path, qkr, prefix):
    model = quantized(qkr)
    save(model, tmp_path / "theirs.pth", prefix)
    options = ["--model", MICRO, "--bits", "W2A2", "--classes", "10", *["--qkr"] * qkr]
    done = run_ofq(
        tmp_path, "import-checkpoint", "theirs.pth", *options, "--out", "ours.safetensors"
    )
    assert done.returncode == 0, done.stderr
    weights, wanted = load_file(tmp_path / "ours.safetensors"), model.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())
    *dropped, last = done.stdout.splitlines()
    assert last == "wrote ours.safetensors"
    assert [line.split()[1] for line in dropped] == ["4", "8"]
    assert any("softmax cancels" in line for line in dropped)
    assert any("clip_val: StatsQ's scale is a statistic" in line for line in dropped)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "W2A2", "--classes", "10"], "doesn't fit the model (bits, QKR, size): missing"),
        (["--bits", "W2A2", "--qkr"], "of a wrong shape: head.weight (10, 48) for (1000, 48)"),
        (["--bits", "W2A1", "--qkr"], "'W2A1'"),
        (["--bits", "W2A2", "--qkr", "--out", "none/ours.safetensors"], "in a folder that exists"),
        (["--bits", "W2A2", "--qkr", "--out", "ours.pth"], "a .safetensors file"),
    ],
)
def test_import_that_cannot_be_is_one_clear_error(tmp_path, options, words):
    save(quantized(qkr=True), tmp_path / "theirs.pth")
    out = [] if "--out" in options else ["--out", "ours.safetensors"]
    done = run_ofq(tmp_path, "import-checkpoint", "theirs.pth", "--model", MICRO, *options, *out)
    assert done.returncode == 2, done
    assert words in done.stderr.replace("\n", " ")
    assert len(done.stderr) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


def test_missing_checkpoint_is_one_clear_error(tmp_path):
    options = ("--model", MICRO, "--bits", "W2A2", "--out", "ours.safetensors")
    done = run_ofq(tmp_path, "import-checkpoint", "none.pth", *options)
    assert done.returncode == 2
    assert "none.pth: no such file" in done.stderr


RECIPE = "dataset: digits\nmodels: [micro_deit_patch2_8]\n"
STUDY = """
title: Released
description: For tests.
recipe: evaluation
models: [micro_deit_patch2_8]
bits: [W2A2, W3A3]
methods: [statsq+qkr+cga]
seeds: [0]
figures: [accuracy]
checkpoints:
  micro_deit_patch2_8: {W2A2: checkpoints/two.pth, W3A3: checkpoints/three.pth}
"""


@pytest.fixture
def study(checkout):
    """A checkout with a study of two checkpoints, that are yet to be put there."""
    (checkout / "config/recipes/evaluation.yaml").write_text(RECIPE)
    (checkout / "config/studies/released.yaml").write_text(STUDY)
    return checkout


@pytest.mark.slow
def test_study_gives_each_checkpoint_the_accuracy_of_its_model(study):
    originals = {"two": quantized(True, bits=2), "three": quantized(True, bits=3, seed=1)}
    for name, model in originals.items():
        save(model, study / f"checkpoints/{name}.pth")
    expected = [top1(model) for model in originals.values()]
    assert expected[0] != expected[1]
    runs = run_ofq(study, "runs", "released").stdout.split()[::2]
    assert [name.rpartition("/")[2][:18] for name in runs] == [
        "w2a2-statsq-qkr-s0",
        "w3a3-statsq-qkr-s0",
    ]
    for name, accuracy in zip(runs, expected, strict=True):
        done = run_ofq(study, "train", "--no-track", name)
        assert done.returncode == 0, done.stderr
        folder = RunFolder(study / "results/runs" / name)
        assert folder.complete()
        result = folder.result()
        assert result["top1"] == pytest.approx(accuracy)
        assert result["top1"] <= result["top5"] <= 100
        assert (result["images"], result["epochs"], result["steps"]) == (900, 0, 0)
        (row,) = folder.rows("metrics")
        assert row["top1"] == result["top1"]
        assert folder.description()["config"]["stage"] == "released"
        (source,) = folder.provenance()["inputs"]
        assert source == folder.description()["config"]["checkpoint"]
        assert f"top-1 {accuracy:.2f} %" in done.stdout
    done = run_ofq(study, "report", "released")
    assert done.returncode == 0, done.stderr
    table = (study / "reports/released/table.md").read_text()
    assert all(f"{accuracy:.2f}" in table for accuracy in expected)


@pytest.mark.slow
def test_missing_file_is_an_error_of_its_own_run(study):
    save(quantized(True), study / "checkpoints/two.pth")
    two, three = run_ofq(study, "runs", "released").stdout.split()[::2]
    assert run_ofq(study, "train", "--no-track", two).returncode == 0
    done = run_ofq(study, "train", "--no-track", three)
    assert done.returncode == 2
    words = [
        "released.yaml",
        f"'checkpoints.{MICRO}.W3A3'",
        "'checkpoints/three.pth'",
        "no such file",
    ]
    assert all(word in done.stderr for word in words)
    assert not (study / "results/runs" / three).exists()


@pytest.mark.slow
def test_imagenet_is_read_from_the_folder_of_the_site(study, tmp_path):
    for name in ("recipes/evaluation.yaml", "studies/released.yaml"):
        path = study / "config" / name
        text = path.read_text().replace(MICRO, "deit_tiny_patch16_224")
        path.write_text(text.replace("digits", "imagenet"))
    (study / "checkpoints").mkdir()
    (study / "checkpoints/two.pth").write_bytes(b"")
    two = run_ofq(study, "runs", "released").stdout.split()[0]
    done = run_ofq(study, "train", "--no-track", two)
    assert done.returncode == 2
    assert all(word in done.stderr for word in ("config.yaml", "'data.imagenet'", "IMAGENET_DIR"))
    (study / "config/config.yaml").write_text("studies: [tiny]\ndata: {imagenet: images}\n")
    assert "images: no such folder" in run_ofq(study, "train", "--no-track", two).stderr


MISTAKES = {
    "no file for a cell": (
        STUDY,
        ", W3A3: checkpoints/three.pth",
        "",
        [f"'checkpoints.{MICRO}.W3A3' is missing"],
    ),
    "file of no cell": (
        STUDY,
        "bits: [W2A2, W3A3]",
        "bits: [W2A2]",
        [f"'checkpoints.{MICRO}.W3A3'", "no such cell", "W2A2"],
    ),
    "bits of another form": (STUDY, "{W2A2", "{W22", ["checkpoints", "W22", "W2A2"]),
    "two methods": (
        STUDY,
        "[statsq+qkr+cga]",
        "[lsq, statsq]",
        ["'methods'", "lsq, statsq", "allowed: one"],
    ),
    "figures of training": (
        STUDY,
        "[accuracy]",
        "[oscillation_by_role]",
        ["'figures'", "allowed: accuracy"],
    ),
    "nothing to train": (
        STUDY,
        STUDY[STUDY.index("checkpoints:") :],
        "",
        ["'evaluation' has no stages", "'checkpoints'"],
    ),
    "data without classes": (
        RECIPE,
        "digits",
        "toy_regression",
        ["'toy_regression'", "allowed: a classification"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_in_a_study_of_checkpoints_is_explained(study, name):
    text, old, new, words = MISTAKES[name]
    assert old in text
    file = "studies/released.yaml" if text is STUDY else "recipes/evaluation.yaml"
    (study / "config" / file).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        Workspace(study).grid("released")
    assert ".yaml" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_shipped_study_names_a_file_for_each_cell():
    runs = Workspace(ROOT).grid("released").runs().values()
    assert len({run.config.checkpoint for run in runs}) == len(runs) == 9
    assert all(run.needs() == [] for run in runs)


def test_data_folder_may_come_from_the_environment(checkout, monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", "/data/imagenet")
    assert str(Workspace(checkout).data_place("imagenet")) == "/data/imagenet"
