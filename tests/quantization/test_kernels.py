"""Kernels for a GPU against the plain path, by Triton's interpreter, which computes on the CPU.

`make test-kernels` runs them. Float32, for which a GPU takes other kernels, tells errors from
rounding here.
"""

import math
import os

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.autograd import grad
from torch.library import opcheck

import ofq.quantization
from ofq.quantization import kernels as fused
from ofq.quantization.attention import split_heads
from ofq.quantization.kernels import fitting
from ofq.quantization.layers import PreShifted, Shifted
from ofq.quantization.quantizers.lsq import LSQ

if os.environ.get("TRITON_INTERPRET") != "1":  # read when Triton is imported, so by the shell
    pytest.skip("make test-kernels runs these", allow_module_level=True)

KERNELS = ["gelu_lsq", "attend", "attend_logits"]
IMAGES, HEADS, CHANNELS = 2, 3, 16
TOKENS = pytest.mark.parametrize("tokens", [19, 70])  # within a tile, and beyond one
WIDTH = HEADS * CHANNELS


def initialized(quantizer, x):
    """A quantizer with scales that differ and shifts that aren't zero."""
    quantizer(x)
    for parameter in quantizer.parameters():
        parameter.data += 0.1 * parameter.data.abs().mean() * torch.randn_like(parameter) + (
            0.05 * torch.randn_like(parameter) * (parameter.abs().max() == 0)
        )
    return quantizer


def assert_near(found, expected):
    """As near as float32's sums in another order; none of these inputs is next to a threshold."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-7


@pytest.mark.parametrize(("bits", "columns", "images"), [(2, 48, 2), (3, 130, 9)])
def test_gelu_and_lsq_in_one_kernel_give_what_they_give_apart(bits, columns, images):
    torch.manual_seed(0)
    x = torch.randn(images, 19, columns, requires_grad=True)
    quantizer = initialized(Shifted(LSQ(bits, -2, signed=False), columns), F.gelu(x))
    lsq, shift = quantizer.quantizer, quantizer.before
    upstream = torch.randn(x.shape)
    inputs = [x, shift, lsq.scale]
    plain = lsq(F.gelu(x) + shift)
    one = fused.gelu_lsq(x, shift, lsq)
    assert_near([one], [plain])
    assert_near(grad(one, inputs, upstream), grad(plain, inputs, upstream))


def attention(bits, tokens):
    """Inputs of an attention and its quantizers."""
    torch.manual_seed(1)
    qkv = torch.randn(IMAGES, tokens, 3 * WIDTH, requires_grad=True)
    parts = qkv.detach().chunk(3, -1)
    kinds = (Shifted, -2), (PreShifted, -2), (Shifted, -1)
    q, k, v = (
        initialized(kind(LSQ(bits, axis), WIDTH), part)
        for (kind, axis), part in zip(kinds, parts, strict=True)
    )
    probability = LSQ(bits, -2, signed=False)
    probability(torch.randn(IMAGES, HEADS, tokens, tokens).softmax(-1))
    return qkv, q, k, v, probability


def attended(logits, v, probability):
    out = probability(logits.softmax(-1)) @ v
    return out.transpose(1, 2).flatten(2)


@TOKENS
@pytest.mark.parametrize("bits", [2, 4])
def test_attention_in_one_kernel_gives_what_its_parts_give(bits, tokens):
    qkv, q, k, v, probability = attention(bits, tokens)
    factor = 1 / math.sqrt(CHANNELS)
    upstream = torch.randn(IMAGES, tokens, WIDTH)
    heads = [
        split_heads(quantizer.shifted(part), HEADS)
        for quantizer, part in zip((q, k, v), qkv.chunk(3, -1), strict=True)
    ]
    plain = attended(heads[0] @ heads[1].transpose(-2, -1) * factor, heads[2], probability)
    quantizers = (q.quantizer, k.quantizer, v.quantizer, probability)
    one = fused.attend(qkv, quantizers, (q.after, v.after), HEADS, factor)
    assert_near([one], [plain])
    inputs = [qkv, *(quantizer.scale for quantizer in quantizers), q.after, v.after]
    assert_near(grad(one, inputs, upstream), grad(plain, inputs, upstream))


@TOKENS
@pytest.mark.parametrize("padding", [0, 2, 5])
def test_attention_of_logits_in_one_kernel_gives_what_its_parts_give(padding, tokens):
    _, _, _, _, probability = attention(2, tokens)
    # as QKR leaves them: heads next to each other
    logits = torch.randn(IMAGES, tokens, HEADS, tokens + padding).transpose(1, 2)
    values = split_heads(torch.randn(IMAGES, tokens, WIDTH), HEADS)
    inputs = [logits.requires_grad_(), values.requires_grad_(), probability.scale]
    upstream = torch.randn(IMAGES, tokens, WIDTH)
    plain = attended(0.3 * logits[..., :tokens], values, probability)
    one = fused.attend_logits(logits, values, probability, 0.3)
    assert_near([one], [plain])
    assert_near(grad(one, inputs, upstream), grad(plain, inputs, upstream))


def test_queries_with_a_masked_tile_and_tiny_denominators_have_finite_gradients():
    _, _, _, _, probability = attention(2, 70)
    logits = torch.randn(IMAGES, HEADS, 70, 70) - 200
    logits[..., :64] = -torch.inf
    inputs = [logits.requires_grad_(), torch.randn(IMAGES, HEADS, 70, CHANNELS), probability.scale]
    plain = attended(*inputs[:2], probability)
    one = fused.attend_logits(*inputs[:2], probability, 1.0)
    assert_near([one], [plain])
    upstream = torch.randn_like(plain)
    wanted = [inputs[0], inputs[2]]
    assert_near(grad(one, wanted, upstream), grad(plain, wanted, upstream))


def test_a_number_that_is_none_stays_none():
    qkv, q, k, v, probability = attention(2, 19)
    qkv = qkv.detach()
    qkv[0, 3, 2 * WIDTH] = torch.nan
    quantizers = (q.quantizer, k.quantizer, v.quantizer, probability)
    out = fused.attend(qkv, quantizers, (q.after, v.after), HEADS, 0.25)
    assert out[0, :, 0].isnan().any()
    assert out[1].isfinite().all()
    x = torch.full((1, 19, 16), torch.nan)
    quantizer = initialized(Shifted(LSQ(2, -2, signed=False), 16), torch.rand_like(x))
    assert fused.gelu_lsq(x, quantizer.before, quantizer.quantizer).isnan().all()


def test_operators_tell_the_compiler_what_they_return():
    torch.manual_seed(3)
    x = torch.randn(IMAGES, 19, 3 * WIDTH, requires_grad=True)
    rows, columns = torch.rand(19) + 0.1, torch.rand(WIDTH) + 0.1
    opcheck(torch.ops.ofq.gelu_lsq, (x, torch.randn(3 * WIDTH), rows, 0, 3, 0.1))
    scales = rows, rows, columns, rows, columns, columns
    opcheck(torch.ops.ofq.attend, (x, *scales, HEADS, 0.25, -2, 1, 3, 4 * [0.1]))
    logits = torch.randn(IMAGES, 19, HEADS, 21).transpose(1, 2).requires_grad_()
    values = split_heads(torch.randn(IMAGES, 19, WIDTH), HEADS).requires_grad_()
    opcheck(torch.ops.ofq.attend_logits, (logits, values, rows, 0.25, 3, 0.1))


@pytest.fixture
def used(monkeypatch):
    """Takes the kernels on the CPU too; which of them were called."""
    names = []
    for name in KERNELS:
        kernel = getattr(fused, name)

        def spy(*arguments, name=name, kernel=kernel):
            names.append(name)
            return kernel(*arguments)

        monkeypatch.setattr(fused, name, spy)
    monkeypatch.setattr(fitting, "fits", lambda x: x.dtype is torch.float16)
    return names


def quantized_block(qkr):
    torch.manual_seed(2)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, num_classes=3)
    model = ofq.quantization.quantize(model, 2, 2, qkr=qkr)
    ofq.quantization.calibrate(model, torch.randn(2, 3, 64, 64))
    return model.blocks[0], torch.randn(2, 17, 192)


@pytest.mark.parametrize(("qkr", "expected"), [(False, "attend"), (True, "attend_logits")])
def test_a_block_in_half_precision_is_near_to_float32_with_kernels(used, qkr, expected):
    block, x = quantized_block(qkr)

    def computed(half):
        block.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=half):
            out = block(x)
        out.sum().backward()
        return {"out": out.detach() - x, **{n: p.grad for n, p in block.named_parameters()}}

    plain = computed(half=False)
    assert not used
    for name, found in computed(half=True).items():
        # some of 2-bit activations' codes change with the last bits of half precision
        assert (found - plain[name]).norm() <= 0.15 * plain[name].norm() + 1e-3, name
    assert used == [expected, "gelu_lsq"]


def test_a_hook_on_fc2_sees_the_output_of_gelu(used):
    block, x = quantized_block(qkr=False)
    seen = []
    block.mlp.fc1.register_forward_hook(lambda *call: seen.append(F.gelu(call[-1])))
    handle = block.mlp.fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.float16):
        block(x)
        assert used == ["attend"]
        handle.remove()
        block(x)
    torch.testing.assert_close(seen[1], seen[0])
    assert used == ["attend", "attend", "gelu_lsq"]
