import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ofq import StatsQ
from ofq.errors import UserError

from tests.support.reference import statsq

BITS = [2, 3, 4, 8]
SAFE = st.floats(-8, 8, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


def away_from_ties(w, bits):
    """Drop what float32 and float64 may round apart."""
    n = 2 ** (bits - 1)
    v = w / (2 * np.abs(w).mean(-1, keepdims=True))
    position = v * n - 0.5
    return (np.abs(position - np.floor(position) - 0.5) > 1e-4) | (np.abs(v) > 1.001)


@pytest.mark.parametrize("bits", BITS)
def test_codes_and_values_are_those_of_the_definition(bits):
    w = torch.randn(24, 40) * torch.rand(24, 1)
    _, code, value = statsq(w, bits)
    safe = away_from_ties(w.double().numpy(), bits)
    assert safe.mean() > 0.99
    quantizer = StatsQ(bits)
    np.testing.assert_array_equal(quantizer.codes(w).numpy()[safe], code[safe])
    np.testing.assert_allclose(quantizer(w).numpy()[safe], value[safe], rtol=1e-5)


@given(arrays(np.float32, (3, 7), elements=SAFE), st.sampled_from(BITS))
def test_every_value_is_a_level_of_its_row(w, bits):
    weight = torch.from_numpy(w)
    quantizer = StatsQ(bits)
    n = 2 ** (bits - 1)
    codes = quantizer.codes(weight).double()
    assert codes.min() >= -n
    assert codes.max() <= n - 1
    expected = 2 * weight.double().abs().mean(-1, keepdim=True) * (codes + 0.5) / n
    torch.testing.assert_close(quantizer(weight).double(), expected, rtol=1e-5, atol=1e-9)


@given(arrays(np.float32, (2, 5), elements=SAFE), st.sampled_from([0.25, 2.0, 64.0]))
def test_scaling_a_row_scales_its_levels_and_keeps_its_codes(w, factor):
    weight, quantizer = torch.from_numpy(w), StatsQ(3)
    assert torch.equal(quantizer.codes(weight * factor), quantizer.codes(weight))
    torch.testing.assert_close(quantizer(weight * factor), quantizer(weight) * factor)


def test_gradient_is_the_identity_for_clipped_weights_too():
    w = torch.randn(4, 9).mul_(3).requires_grad_()
    upstream = torch.randn(4, 9)
    (StatsQ(2)(w) * upstream).sum().backward()
    assert torch.equal(w.grad, upstream)


def test_row_of_zeros_stays_zero_with_a_finite_gradient():
    w = torch.randn(3, 5)
    w[1] = 0
    w.requires_grad_()
    out = StatsQ(2)(w)
    out.sum().backward()
    assert torch.equal(out[1], torch.zeros(5))
    assert torch.isfinite(out).all()
    assert torch.equal(w.grad, torch.ones(3, 5))


def test_zero_in_a_row_takes_the_level_above_it():
    w = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    assert StatsQ(2)(w)[0, 0] == pytest.approx(2 * 1.0 / 4)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 2.5])
def test_other_bit_widths_are_refused(bits):
    with pytest.raises(UserError, match="allowed: 2 to 8"):
        StatsQ(bits)


def test_computes_in_float32_under_autocast():
    w = torch.randn(8, 16)
    plain = StatsQ(2)(w)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(StatsQ(2)(w), plain)
