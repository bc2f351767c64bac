"""What config files say of the factors of a weight quantizer is what is measured on it."""

import itertools

import pytest
import torch

from ofq.config import Method
from ofq.config.factors import OF_QUANTIZER, TRAITS, factors
from ofq.config.method import WEIGHT_QUANTIZERS
from ofq.quantization.quantizers.base import make_weight_quantizer

_OPTIONS = [
    {key: value for key, value in (("factor", factor), ("gradient", gradient)) if value is not None}
    for factor, gradient in itertools.product((None, 0.8), (None, "inside", "everywhere"))
]


def measured(name, options, bits):
    torch.manual_seed(0)
    weight = torch.randn(4, 4096)
    quantizer = make_weight_quantizer(name, bits, weight, options)
    levels = torch.stack([quantizer.level(weight, code)[0, 0] for code in range(-2, 2)])
    step = quantizer.step_size(weight)[0].item()
    at_zero = levels.abs().min().item() < step / 100
    moments = name == "statsq_moments"
    unit = weight[0].std() if moments else weight[0].abs().mean()
    learned = bool(list(quantizer.parameters()))
    with torch.no_grad():
        weight[0, 0] = 100.0
    weight.requires_grad_()
    quantizer(weight).sum().backward()
    return {
        "grid": "a level at zero" if at_zero else "a threshold at zero",
        "initial_step": f"{step / unit:.4g} {'std(w)' if moments else 'mean|w|'}",
        "scale": "learned" if learned else "statistical",
        "gradient": "everywhere" if weight.grad[0, 0] == 1 else "inside",
    }


def test_quantizers_that_are_not_in_the_table_differ_from_all_others_in_each_factor():
    assert set(TRAITS) < set(WEIGHT_QUANTIZERS)
    for name in set(WEIGHT_QUANTIZERS) - set(TRAITS):
        own = factors(Method(label="x", weight_quantizer=name), "W2A2")
        assert {own[factor] for factor in OF_QUANTIZER} == {f"that of {name}"}


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", TRAITS)
def test_factors_are_as_measured(name, bits):
    for options in [{}] if name == "statsq_moments" else _OPTIONS:
        method = Method(label="x", weight_quantizer=name, options=options)
        declared = factors(method, f"W{bits}A{bits}")
        found = measured(name, options, bits)
        assert {key: declared[key] for key in found} == found
