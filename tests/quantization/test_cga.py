import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from torch import nn

import ofq
from ofq.errors import UserError
from ofq.quantization import low_bit_weights, near_threshold
from ofq.quantization.layers import Passthrough, QuantizedLinear
from ofq.quantization.quantizers.base import make_weight_quantizer

from tests.support.reference import near_threshold as reference_mask


def one_layer(name="statsq", bits=2, rows=16, columns=32):
    linear = nn.Linear(columns, rows)
    quantizer = make_weight_quantizer(name, bits, linear.weight)
    return QuantizedLinear(linear, quantizer, Passthrough(), {"fc1": slice(0, rows)})


@given(
    arrays(np.float32, (4, 6), elements=st.floats(-9, 8, width=32)),
    st.sampled_from([0.003, 0.05, 0.1, 0.25]),
    st.sampled_from([2, 3, 4]),
)
def test_mask_is_that_of_a_loop_over_thresholds(position, boundary_range, bits):
    edge = np.abs(np.abs(position - np.floor(position) - 0.5) - boundary_range) < 1e-5
    n = 2 ** (bits - 1)
    mask = near_threshold(torch.from_numpy(position), boundary_range, -n, n - 1).numpy()
    assert np.array_equal(mask[~edge], reference_mask(position, boundary_range, bits)[~edge])


@pytest.mark.parametrize("boundary_range", [0.005, 0.01, 0.1])
def test_trainable_share_of_normal_weights_at_2_bits(boundary_range):
    """Thresholds lie at 0 and ± E|w|, a step is E|w| wide: 0.8 % at BR 0.005, by integration."""
    step = np.sqrt(2 / np.pi)
    width = boundary_range * step
    edges = np.array([-step, 0, step])
    expected = (norm.cdf(edges + width) - norm.cdf(edges - width)).sum()
    position = ofq.StatsQ(2).position(torch.randn(500, 2000))
    share = near_threshold(position, boundary_range, -2, 1).double().mean().item()
    assert share == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", ["statsq", "lsq"])
def test_only_weights_inside_the_band_move(name):
    torch.manual_seed(0)
    layer = one_layer(name)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.1)
    annealing = ofq.ConfidenceGuidedAnnealing(layer, 0.1)
    for _ in range(4):
        before = layer.weight.detach().clone()
        quantizer = layer.weight_quantizer
        near = near_threshold(quantizer.position(before), 0.1, quantizer.lowest, quantizer.highest)
        optimizer.zero_grad()
        layer(torch.randn(8, 32)).square().sum().backward()
        bias = layer.bias.detach().clone()
        annealing.step(optimizer)
        moved = layer.weight.detach() != before
        assert torch.equal(moved, near)
        assert torch.equal(layer.weight.grad[~near], torch.zeros_like(before[~near]))
        assert (layer.bias != bias).all()


def test_share_of_frozen_weights():
    layer = one_layer(rows=64, columns=64)
    near = near_threshold(layer.weight_quantizer.position(layer.weight), 0.1, -2, 1)
    share = ofq.ConfidenceGuidedAnnealing(layer, 0.1).frozen_share()
    assert share == pytest.approx(100 * (1 - near.double().mean().item()))


def test_merged_weight_outside_the_band_passes_no_gradient(micro_model):
    model = ofq.quantize(micro_model, qkr=True)
    images = torch.randn(2, 1, 8, 8)
    ofq.calibrate(model, images)
    merged = model.blocks[0].attn.scores.merged

    def gradient():
        model.zero_grad()
        model(images).square().sum().backward()
        return merged.q_weight.grad.clone()

    free = gradient()
    ofq.ConfidenceGuidedAnnealing(model, 1e-9)
    assert free.abs().max() > 0
    assert gradient().abs().max() == 0
    ofq.ConfidenceGuidedAnnealing(model, 0.05)
    annealed = gradient()
    assert 0 < annealed.norm() < free.norm()


def test_annealing_covers_all_low_bit_weights_and_spares_the_ends(micro_model):
    model = ofq.quantize(micro_model, weight_quantizer="statsq")
    images = torch.randn(4, 1, 8, 8)
    ofq.calibrate(model, images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    annealing = ofq.ConfidenceGuidedAnnealing(model, 1e-9)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(images).square().sum().backward()
    annealing.step(optimizer)
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {f"{w.layer}.weight" for w in low_bit_weights(model)}


@pytest.mark.parametrize("boundary_range", [0, -1, 0.5])
def test_other_boundary_ranges_are_refused(boundary_range):
    with pytest.raises(UserError, match="boundary_range"):
        ofq.ConfidenceGuidedAnnealing(one_layer(), boundary_range)


def test_model_without_low_bit_weights_is_refused():
    with pytest.raises(UserError, match="nothing to anneal"):
        ofq.ConfidenceGuidedAnnealing(nn.Linear(2, 2))
