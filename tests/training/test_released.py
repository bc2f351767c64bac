"""Checkpoints in the authors' layout: imported, and evaluated as a study."""

import argparse
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ofq
from ofq.training import models
from ofq.training.data import load

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


def run(folder, *arguments):
    command = [sys.executable, "-m", "ofq", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("qkr", [False, True])
def test_checkpoint_is_imported_and_every_dropped_tensor_explained(tmp_path, qkr, prefix):
    model = quantized(qkr)
    save(model, tmp_path / "theirs.pth", prefix)
    options = ["--model", MICRO, "--bits", "W2A2", "--classes", "10", *["--qkr"] * qkr]
    done = run(tmp_path, "import-checkpoint", "theirs.pth", *options, "--out", "ours.safetensors")
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
    done = run(tmp_path, "import-checkpoint", "theirs.pth", "--model", MICRO, *options, *out)
    assert done.returncode == 2, done
    assert words in done.stderr.replace("\n", " ")
    assert len(done.stderr) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


def test_missing_checkpoint_is_one_clear_error(tmp_path):
    options = ("--model", MICRO, "--bits", "W2A2", "--out", "ours.safetensors")
    done = run(tmp_path, "import-checkpoint", "none.pth", *options)
    assert done.returncode == 2
    assert "none.pth: no such file" in done.stderr
