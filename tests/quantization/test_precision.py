"""Mixed precision, accumulation and data parallelism leave the quantizers alone."""

import copy
import os
import subprocess
import sys

import pytest
import torch

import ofq
from ofq.quantization import low_bit_weights, near_threshold, set_gradient_batch

from tests.support.servers import free_port

FORMS = [("statsq", False), ("statsq", True), ("lsq", False), ("lsq", True)]


@pytest.fixture(params=FORMS, ids=lambda form: f"{form[0]}{'-qkr' if form[1] else ''}")
def model(request, micro_model):
    quantizer, qkr = request.param
    model = ofq.quantize(micro_model, 2, 2, quantizer, qkr)
    ofq.calibrate(model, torch.randn(8, 1, 8, 8))
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_quantize_to_the_same_values_under_autocast(model, dtype):
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.setdefault(name, []).append(output)

    for weight in low_bit_weights(model):
        weight.quantizer.register_forward_hook(keep(weight.layer))
    images = torch.randn(4, 1, 8, 8)
    model(images)
    with torch.autocast("cpu", dtype):
        logits = model(images)
    assert seen
    for values in seen.values():
        assert values[1].dtype == torch.float32
        assert torch.equal(values[0], values[1])
    assert torch.isfinite(logits).all()


def test_activations_quantize_in_float32_under_autocast():
    quantizer = ofq.LSQ(2, axis=-2)
    x = torch.randn(3, 5, 7)
    plain = quantizer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(x), plain)
        assert quantizer(x.bfloat16()).dtype == torch.float32


def test_annealing_under_a_gradient_scaler_moves_only_the_band(micro_model):
    model = ofq.quantize(micro_model)
    images = torch.randn(8, 1, 8, 8)
    ofq.calibrate(model, images)
    annealing = ofq.ConfidenceGuidedAnnealing(model, 0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    weight = model.blocks[0].mlp.fc1
    before = weight.weight.detach().clone()
    near = near_threshold(weight.weight_quantizer.position(before), 0.05, -2, 1)
    with torch.autocast("cpu", torch.float16):
        loss = model(images).float().square().mean()
    scaler.scale(loss).backward()
    annealing.step(optimizer, scaler)
    scaler.update()
    assert torch.equal(weight.weight.detach() != before, near)


def test_step_skipped_by_the_scaler_leaves_all_weights(micro_model):
    model = ofq.quantize(micro_model)
    ofq.calibrate(model, torch.randn(8, 1, 8, 8))
    annealing = ofq.ConfidenceGuidedAnnealing(model, 0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(2, 1, 8, 8)).sum()).backward()
    model.head.bias.grad.fill_(torch.inf)
    before = copy.deepcopy(model.state_dict())
    annealing.step(optimizer, scaler)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def gradients(model, images, labels, passes):
    """Gradients of the mean loss, accumulated over some passes."""
    model.zero_grad()
    for part, target in zip(images.chunk(passes), labels.chunk(passes), strict=True):
        (torch.nn.functional.cross_entropy(model(part), target) / passes).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_accumulation_gives_the_gradients_of_one_big_batch(model):
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))
    whole = gradients(model, images, labels, passes=1)
    set_gradient_batch(model, counted=8, per_pass=2)
    parts = gradients(model, images, labels, passes=4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_gradient_scale_counts_one_pass_unless_told_otherwise(micro_model):
    model = ofq.quantize(micro_model)
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))
    ofq.calibrate(model, images)
    whole = gradients(model, images, labels, passes=1)
    parts = gradients(model, images, labels, passes=4)
    name = "blocks.0.mlp.fc1.input_quantizer.quantizer.scale"
    torch.testing.assert_close(parts[name], 2 * whole[name], rtol=1e-3, atol=1e-5)


PARALLEL = """
import sys, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
import ofq
from ofq.quantization import set_gradient_batch
from ofq.training.models import build
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
model = ofq.quantize(build("micro_deit_patch2_8", 10), 2, 2, qkr=True)
images, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))
ofq.calibrate(model, images)
loss = torch.nn.functional.cross_entropy
loss(model(images), labels).backward()
whole = {name: p.grad.clone() for name, p in model.named_parameters()}
model.zero_grad()
set_gradient_batch(model, counted=8, per_pass=4)
mine = slice(4 * rank, 4 * rank + 4)
parallel = DistributedDataParallel(model)
loss(parallel(images[mine]), labels[mine]).backward()
for name, p in model.named_parameters():
    torch.testing.assert_close(p.grad, whole[name], rtol=1e-3, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_big_batch(tmp_path):
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    port = str(free_port())
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=shared | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    done = [process.communicate(timeout=120) for process in started]
    assert [out.strip() for out, _ in done] == ["equal", "equal"], done
