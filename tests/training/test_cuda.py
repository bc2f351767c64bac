"""On a GPU: the same numbers as on the CPU, no wait within a step, no trace of an interruption."""

import copy
import os
import subprocess
import sys

import pytest
import torch

import ofq
from ofq.models.compiling import compile_blocks
from ofq.quantization.kernels import fitting
from ofq.quantization.quantizers.base import OFF, make_weight_quantizer
from ofq.training.distributed import SingleProcess
from ofq.training.models import build

from tests.support.servers import free_port
from tests.support.trainings import Recorder, Trainings, annealed, same_weights, without_times

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")


@pytest.fixture
def train(checkout, tmp_path):
    """Trains a stage of the tiny study, and all that it builds on, on the GPU."""
    return Trainings(checkout, tmp_path, SingleProcess(CUDA))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["statsq", "lsq"])
@pytest.mark.parametrize("compiled", [False, True])
def test_weights_get_the_codes_that_the_cpu_gives_them(name, bits, compiled):
    torch.manual_seed(0)
    weight = torch.randn(192, 768) * 0.02
    quantizer = make_weight_quantizer(name, bits, weight)
    there = copy.deepcopy(quantizer).to(CUDA)
    codes = torch.compile(there.codes) if compiled else there.codes
    differing = codes(weight.to(CUDA)).cpu() != quantizer.codes(weight)
    # sums over a row have another order, so a scale may differ in its last bit; hence only a weight
    # within a few of its own last bits of a threshold may get another code
    position = quantizer.position(weight)[differing]
    distance = (position - position.floor() - 0.5).abs()
    assert (distance < 1e-5 * 2**bits).all()
    assert differing.float().mean() < 1e-4


@pytest.mark.parametrize(("quantizer", "qkr"), [("statsq", True), ("lsq", False)])
@pytest.mark.parametrize("compiled", [False, True])
def test_logits_and_gradients_are_those_of_the_cpu(quantizer, qkr, compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    images = torch.randn(8, 1, 8, 8)
    # activations aren't rounded: where one got another code, all that follows would differ
    model = ofq.quantize(build("micro_deit_patch2_8", 10), 2, OFF, quantizer, qkr)
    ofq.calibrate(model, images)
    ends = []
    for device in (torch.device("cpu"), CUDA):
        own = copy.deepcopy(model).to(device).train()
        if compiled and device == CUDA:
            compile_blocks(own, device)
        logits = own(images.to(device))
        logits.square().sum().backward()
        gradients = {name: p.grad.cpu() for name, p in own.named_parameters()}
        ends.append((logits.detach().cpu(), gradients))
    (logits, gradients), (others, other_gradients) = ends
    torch.testing.assert_close(others, logits, rtol=1e-3, atol=1e-4)
    for name, gradient in gradients.items():
        error = (other_gradients[name] - gradient).norm()
        assert error <= 1e-3 * gradient.norm() + 1e-5, name


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qkr", [False, True])
def test_kernels_are_as_near_to_float32_as_what_they_stand_for(kind, qkr, monkeypatch):
    torch.manual_seed(0)
    model = ofq.quantize(build("deit_tiny_patch16_224", 10), 2, 2, "statsq", qkr)
    ofq.calibrate(model, torch.randn(4, 3, 224, 224))
    block = model.blocks[5].to(CUDA)
    x = torch.randn(4, 197, 192, device=CUDA)
    upstream = torch.randn_like(x)

    def computed(half):
        block.zero_grad()
        with torch.autocast("cuda", kind, enabled=half):
            out = block(x)
        out.backward(upstream)
        return [out.detach() - x, *(p.grad.clone() for p in block.parameters())]

    expected = computed(half=False)
    by_kernels = computed(half=True)
    monkeypatch.setattr(fitting, "fits", lambda x: False)
    plainly = computed(half=True)
    assert any((a != b).any() for a, b in zip(by_kernels, plainly, strict=True))
    for a, b, right in zip(by_kernels, plainly, expected, strict=True):
        # codes next to a threshold fall here or there, so that errors are alike, not the same
        assert (a - right).norm() <= 1.5 * (b - right).norm() + 0.02 * right.norm()


class Strict(Recorder):
    """Lets torch raise at each wait for the device, from a step to an epoch's end."""

    ends = 14  # the tiny study's steps per epoch
    watched = 0

    def step(self, step):
        super().step(step)
        within = step % self.ends != 0 and step > 1
        torch.cuda.set_sync_debug_mode("error" if within else "default")
        self.watched += within


@pytest.fixture
def _lenient_again():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("_lenient_again")
def test_no_step_waits_for_the_device(checkout, tmp_path, precision, compiled):
    train = Trainings(checkout, tmp_path, SingleProcess(CUDA), Strict, precision=precision)
    recorder, _ = train("cga0.005-s0", compiled=compiled)
    assert recorder.watched > 10
    assert recorder.rows[-1]["top1"] > 20


@pytest.mark.parametrize("compiled", [False, True])
def test_training_interrupted_on_a_gpu_ends_bit_identical(train, compiled):
    whole, weights = train("cga0.005-s0", compiled=compiled)
    pieces, again = train("cga0.005-s0", stops=[3, 4, 9], folder="pieces", compiled=compiled)
    assert same_weights(weights, again)
    assert without_times(whole.rows) == without_times(pieces.rows)
    assert without_times(whole.layers) == without_times(pieces.layers)
    assert whole.tables == pieces.tables


def test_compiled_tracker_and_annealing_do_the_same_to_each_weight():
    model = ofq.quantize(build("micro_deit_patch2_8", 10), 2, 2, "statsq", True).to(CUDA)
    ofq.calibrate(model, torch.randn(8, 1, 8, 8, device=CUDA))
    plain, _ = annealed(copy.deepcopy(model), compiled=False)
    compiled, _ = annealed(model, compiled=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)


ALONE_IN_A_GROUP = """
import torch
from ofq.training.distributed import ProcessGroup
group = ProcessGroup("cuda")
tensors = [torch.full((3,), 2.0, device=group.device), torch.ones((), device=group.device)]
torch.cuda.synchronize()
torch.cuda.set_sync_debug_mode("error")
group.all_reduce_mean(tensors)
torch.cuda.set_sync_debug_mode("default")
assert tensors[0].tolist() == [2.0, 2.0, 2.0]
assert group.all_reduce_sum(torch.tensor(3.0, device=group.device)).item() == 3.0
assert group.all_gather_object("a") == ["a"] and group.agree(None, True) == (None, True)
group.destroy()
print("met")
"""


def test_processes_meet_by_nccl():
    own = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "1",
        "RANK": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE_IN_A_GROUP],
        env=os.environ | own, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "met\n", done.stderr
