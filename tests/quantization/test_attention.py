"""Attention against its equations in NumPy, float64, with non-zero shifts."""

import numpy as np
import pytest
import timm
import torch

import ofq

from tests.support.reference import lsq, statsq

HEADS, WIDTH, BITS = 3, 24, 3


def array(tensor):
    return tensor.detach().double().numpy()


def quantized_activation(x, module, axis, signed=True):
    """LSQ(x + before) + after with one scale per index of an axis."""
    quantizer = getattr(module, "quantizer", module)
    scale = array(quantizer.scale)
    shape = [len(scale) if d == axis % x.ndim else 1 for d in range(x.ndim)]
    before = array(module.before) if hasattr(module, "before") else 0
    after = array(module.after) if hasattr(module, "after") else 0
    return lsq(x + before, scale.reshape(shape), BITS, signed)[0] + after


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads(x):
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)


def linear(x, layer):
    return x @ statsq(array(layer.weight), BITS)[2].T + array(layer.bias)


def separate(x, scores):
    x = quantized_activation(x, scores.qkv.input_quantizer, -2)
    q, k, v = np.split(linear(x, scores.qkv), 3, axis=-1)
    q = quantized_activation(q, scores.q_quantizer, -2)
    k = quantized_activation(k, scores.k_quantizer, -2)
    v = quantized_activation(v, scores.v_quantizer, -1)
    return heads(q) @ heads(k).swapaxes(-1, -2), heads(v)


def reparameterized(x, scores):
    x = quantized_activation(x, scores.input_quantizer, -2)
    batch, tokens, _ = x.shape
    w_q = array(scores.merged.q_weight).reshape(HEADS, -1, WIDTH)
    w_k = array(scores.merged.k_weight).reshape(HEADS, -1, WIDTH)
    merged = np.concatenate([w_q[h].T @ w_k[h] for h in range(HEADS)])
    z = x @ statsq(merged, BITS)[2].T + array(scores.z_quantizer.before)
    scale = array(scores.z_quantizer.quantizer.scale)  # index n·H + h
    z = lsq(z.reshape(batch, tokens * HEADS, WIDTH), scale[:, None], BITS, True)[0]
    z = z.reshape(batch, tokens, HEADS, WIDTH)
    logits = np.einsum("bnc,bmhc->bhnm", x, z)
    v = quantized_activation(linear(x, scores.v), scores.v_quantizer, -1)
    return logits, heads(v)


@pytest.mark.parametrize(("qkr", "reference"), [(False, separate), (True, reparameterized)])
def test_attention_computes_its_equations(qkr, reference):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=WIDTH, depth=1, num_heads=HEADS
    )
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight *= 20  # so that logits differ and the softmax shows it
    attention = ofq.quantize(model, BITS, BITS, qkr=qkr).blocks[0].attn.eval()
    x = torch.randn(2, 17, WIDTH)
    attention(x)  # sets the scales
    for name, parameter in attention.named_parameters():
        if name.endswith(("before", "after")):
            torch.nn.init.normal_(parameter, std=0.1)
    out = attention(x)
    logits, v = reference(array(x), attention.scores)
    probabilities = softmax(logits / np.sqrt(WIDTH / HEADS))
    probabilities = quantized_activation(probabilities, attention.probability_quantizer, -2, False)
    mixed = (probabilities @ v).transpose(0, 2, 1, 3).reshape(2, 17, WIDTH)
    expected = linear(
        quantized_activation(mixed, attention.proj.input_quantizer, -2), attention.proj
    )
    # float32 may round a value at a tie to the other code; one code moves an output by far more
    # than this tolerance, so nearly all outputs must agree to float precision
    close = np.isclose(array(out), expected, rtol=1e-3, atol=1e-4)
    assert close.mean() > 0.95
