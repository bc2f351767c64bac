"""Compiled training computes what plain training computes."""

import copy
import errno
import os
import subprocess
import time
from functools import partial

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

import ofq
from ofq.errors import TryAgain, UserError
from ofq.models.compiling import compile_blocks, uncompiled
from ofq.stopping import Interrupted, StopRequest
from ofq.training.compile import interruptible
from ofq.training.models import build

from tests.support.trainings import Trainings, annealed, same_weights, without_times

CPU = torch.device("cpu")


def micro_swin():
    """One stage of two blocks, the second with shifted windows."""
    return SwinTransformer(
        img_size=8, patch_size=1, in_chans=1, num_classes=10, embed_dim=16, depths=(2,),
        num_heads=(2,), window_size=4, drop_path_rate=0.0,
    )  # fmt: skip


FORMS = [
    pytest.param(partial(build, "micro_deit_patch2_8", 10), "statsq", True, id="deit-statsq-qkr"),
    pytest.param(micro_swin, "lsq", False, id="swin-lsq"),
]


@pytest.fixture(autouse=True)
def _anew():
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()


def trained(model, images):
    """Logits of a training pass, and the gradients that it leaves."""
    model.train().zero_grad()
    logits = model(images)
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "quantizer", "qkr"), FORMS)
def test_compiled_blocks_give_the_same_logits_and_gradients(make, quantizer, qkr):
    images = torch.randn(8, 1, 8, 8)
    # 8-bit activations: where rounding differs by one code, outputs differ little
    model = ofq.quantize(make(), 2, 8, quantizer, qkr)
    ofq.calibrate(model, images)
    plain, expected = trained(model, images)
    assert ofq.compile(model) is model
    logits, gradients = trained(model, images)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    torch.testing.assert_close(logits, plain, rtol=1e-2, atol=1e-3)
    for parameter, gradient in gradients.items():
        # where an activation rounds to another code, its row differs; and a scale's gradient is a
        # sum of rounding errors that nearly cancel
        tolerance = 0.2 if parameter.endswith("scale") else 0.05
        error = (gradient - expected[parameter]).norm()
        assert error <= tolerance * expected[parameter].norm() + 1e-5, parameter
    with uncompiled():
        again = model(images)
    assert torch.equal(again, plain)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_interrupted_compiled_training_ends_bit_identical(checkout, tmp_path):
    for name, text, other in (
        ("studies/tiny", "W2A2", "W2A8"),  # what is compiled for the test above
        ("recipes/small", "cga: {epochs: 1, batch_size: 64", "cga: {epochs: 1, batch_size: 8"),
    ):
        path = checkout / f"config/{name}.yaml"
        path.write_text(path.read_text().replace(text, other))
    train = Trainings(checkout, tmp_path)
    whole, weights = train("cga0.005-s0", compiled=True)
    pieces, again = train("cga0.005-s0", stops=[3, 9], folder="pieces", compiled=True)
    assert same_weights(weights, again)
    assert without_times(whole.rows) == without_times(pieces.rows)
    plain, other = train("cga0.005-s0", folder="plain")
    assert not same_weights(weights, other)
    assert abs(plain.rows[-1]["top1"] - whole.rows[-1]["top1"]) < 5


@pytest.mark.parametrize(("make", "quantizer", "qkr"), FORMS)
def test_blocks_compile_in_one_piece_under_autocast_too(make, quantizer, qkr):
    images = torch.randn(8, 1, 8, 8)
    model = ofq.quantize(make(), 2, 2, quantizer, qkr).train()
    ofq.calibrate(model, images)
    seen = []
    block = next(m for m in model.modules() if isinstance(m, (Block, SwinTransformerBlock)))
    block.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    model(images)
    block._forward_pre_hooks.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch._dynamo.explain(block)(seen[0])
    assert found.graph_count == 1, found


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_compiled_tracker_and_annealing_do_the_same_to_each_weight():
    plain = ofq.quantize(build("micro_deit_patch2_8", classes=10), 2, 2, "statsq", True)
    ofq.calibrate(plain, torch.randn(8, 1, 8, 8))
    one, tracker = annealed(copy.deepcopy(plain), compiled=False)
    other, _ = annealed(plain, compiled=True)
    assert counters["stats"]["unique_graphs"] > 0
    assert sum(history.flips.sum() for history in tracker.histories) > 0
    torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)


def calibrated():
    model = ofq.quantize(build("micro_deit_patch2_8", classes=10))
    ofq.calibrate(model, torch.randn(8, 1, 8, 8))
    return model


@pytest.mark.parametrize(
    ("make", "parts", "said"),
    [
        (lambda: ofq.quantize(micro_swin()), (), "isn't calibrated: .* call ofq.calibrate"),
        (lambda: torch.compile(calibrated()), (), "inside torch.compile; give the model itself"),
        (lambda: torch.nn.Linear(2, 2), (), "a Linear has no blocks to compile; allowed: timm's"),
        (calibrated, (torch.nn.Linear(2, 2),), "can't compile a Linear beside the model; allowed"),
    ],
)
def test_what_cannot_be_compiled_is_refused(make, parts, said):
    model = make()
    with pytest.raises(UserError, match=said):
        ofq.compile(model, *parts)


def test_compiled_model_is_packed_as_the_plain_one(tmp_path):
    model = calibrated()
    ofq.save_packed(model, tmp_path / "plain", name="micro_deit_patch2_8")
    ofq.compile(model)
    ofq.save_packed(model, tmp_path / "compiled", name="micro_deit_patch2_8")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "compiled").read_bytes()


def test_compiling_without_a_compiler_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"C\+\+ compiler.*no-such-compiler.*compile: false"):
        compile_blocks(build("micro_deit_patch2_8", classes=10), CPU)


def test_half_written_libraries_are_removed_unless_one_may_be_being_written(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    whole = tmp_path / "ab" / "whole.so"
    whole.parent.mkdir()
    command = ["g++", "-shared", "-x", "c++", "-", "-o", str(whole)]
    subprocess.run(command, input=b"int f() { return 1; }", check=True)
    content = whole.read_bytes()
    torn = {whole.with_name(f"{share}.so"): share for share in (0, 0.002, 0.5, 0.99)}
    for path, share in torn.items():
        path.write_bytes(content[: int(share * len(content))])
    coming = time.time() + 3600
    for path in torn:
        os.utime(path, (coming, coming))  # not settled, however long the test takes
    model = build("micro_deit_patch2_8", classes=10)
    compile_blocks(model, CPU)
    assert set(tmp_path.rglob("*.so")) == {whole, *torn}
    for path in (whole, *torn):
        os.utime(path, (0, 0))
    compile_blocks(model, CPU)
    assert set(tmp_path.rglob("*.so")) == {whole}


def compiler_fails(message):
    raise BackendCompilerFailed(lambda: None, RuntimeError(message), None)


def test_half_written_header_is_removed_for_another_attempt(tmp_path):
    torn = tmp_path / "ab.h.gch"
    torn.touch()
    said = f"Command:\ng++ -include {tmp_path}/ab.h x.cpp\nfatal error: cannot read PCH file: No"
    with pytest.raises(TryAgain, match=str(torn)), interruptible(StopRequest()):
        compiler_fails(said)
    assert not torn.exists()


def test_compiler_that_was_killed_or_finds_no_room_is_no_failure():
    with pytest.raises(TryAgain, match="want of memory"), interruptible(StopRequest()):
        compiler_fails(
            "C++ compile error\nc++: fatal error: Killed signal terminated program cc1plus"
        )
    with pytest.raises(OSError, match="No space left"), interruptible(StopRequest()):
        raise BackendCompilerFailed(
            lambda: None, OSError(errno.ENOSPC, "No space left on device"), None
        )


def test_compiler_that_died_of_a_request_to_stop_is_no_failure():
    stop = StopRequest()
    stop.cause = "SIGINT"
    with pytest.raises(Interrupted, match="SIGINT"), interruptible(stop):
        compiler_fails("C++ compile error")
    with pytest.raises(BackendCompilerFailed), interruptible(StopRequest()):
        compiler_fails("C++ compile error")
