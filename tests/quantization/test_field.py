"""Techniques of the field against their equations in NumPy, float64."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import ofq
from ofq.errors import UserError
from ofq.quantization import (
    BinRegularization,
    Dampening,
    IterativeFreezing,
    LSQWeight,
    OscillationInducing,
    TransitionRate,
    WeightAverage,
    make_technique,
)
from ofq.quantization.layers import Passthrough, QuantizedLinear
from ofq.quantization.quantizers.base import make_weight_quantizer

from tests.support.reference import lsq, statsq

pytestmark = pytest.mark.usefixtures("one_thread")

GRIDS = [("lsq", 2), ("lsq", 3), ("statsq", 2), ("statsq", 4)]


def layer_of(name, bits, rows=6, columns=9, **options):
    linear = nn.Linear(columns, rows)
    quantizer = make_weight_quantizer(name, bits, linear.weight, options)
    return QuantizedLinear(linear, quantizer, Passthrough(), {"fc1": slice(0, rows)})


def layers_of(name, bits):
    return nn.ModuleList([layer_of(name, bits), layer_of(name, bits, 4, 20)])


def on_grid(weight, name, bits, scale=None):
    """Codes and values of a weight, and the weight clipped to the range of levels."""
    n = 2 ** (bits - 1)
    if name == "statsq":
        scale, codes, values = statsq(weight, bits)
        ends = [scale * (code + 0.5) / n for code in (-n, n - 1)]
    else:
        values, codes = lsq(weight, scale, bits, signed=True)
        ends = [scale * code for code in (-n, n - 1)]
    return codes, values, np.clip(weight, *ends)


def numbers(layer):
    """Weight and scale of a layer, float64."""
    weight = layer.weight.detach().double().numpy()
    return weight, layer.weight_quantizer.scale(layer.weight).double().numpy()


def bins(weight, name, bits, scale):
    """What bin regularization adds up for one weight, and its gradient."""
    codes, values, clipped = on_grid(weight, name, bits, scale)
    value = ((values - clipped) ** 2).mean()
    gradient = 2 * (clipped - values) / weight.size
    for row in range(len(weight)):
        for code in np.unique(codes[row]):
            inside = codes[row] == code
            members = clipped[row, inside]
            if len(members) > 1:
                value += members.var(ddof=1) / len(weight)
                apart = 2 * (members - members.mean()) / (len(members) - 1)
                gradient[row, inside] += apart / len(weight)
    return value, gradient * (clipped == weight)


def inducing(weight, name, bits, scale):
    """What inducing oscillation adds up for one weight, and its gradient."""
    _, values, clipped = on_grid(weight, name, bits, scale)
    gradient = 2 * (values - clipped) / weight.size * (clipped == weight)
    return (values**2 - clipped**2).mean(), gradient


PENALTIES = [
    pytest.param(lambda model: BinRegularization(model, 0.7, 0.25), bins, id="bin_regularization"),
    pytest.param(lambda model: OscillationInducing(model, 0.35), inducing, id="inducing"),
]
HALFWAY = 0.625  # from a quarter on, where λ is half of 0.7


@pytest.mark.parametrize(("name", "bits"), GRIDS)
@pytest.mark.parametrize(("technique", "reference"), PENALTIES)
def test_penalty_and_its_gradient_are_those_of_the_equation(technique, reference, name, bits):
    layers = layers_of(name, bits)
    penalty = technique(layers).penalty(HALFWAY)
    penalty.backward()
    expected = 0.0
    for layer in layers:
        value, gradient = reference(*numbers(layer)[:1], name, bits, numbers(layer)[1])
        expected += value
        np.testing.assert_allclose(layer.weight.grad.numpy(), 0.35 * gradient, atol=1e-7)
        assert all(p.grad is None for p in layer.weight_quantizer.parameters())
    assert penalty.item() == pytest.approx(0.35 * expected, rel=1e-5)


@pytest.mark.parametrize(("technique", "reference"), PENALTIES)
def test_weights_after_five_steps_on_the_penalty_alone(technique, reference):
    layer = layer_of("lsq", 2)
    start, scale = numbers(layer)
    weight, own = start, technique(layer)
    optimizer = torch.optim.SGD([layer.weight], lr=5.0)
    for _ in range(5):
        optimizer.zero_grad()
        own.penalty(HALFWAY).backward()
        own.step(optimizer, progress=HALFWAY)
        weight = weight - 5.0 * 0.35 * reference(weight, "lsq", 2, scale)[1]
    assert np.abs(weight - start).max() > 0.01
    np.testing.assert_allclose(numbers(layer)[0], weight, rtol=0, atol=1e-6)


def test_bins_of_one_weight_have_no_variance():
    layer = layer_of("lsq", 2, 1, 3)
    with torch.no_grad():
        step = layer.weight_quantizer.step_size(layer.weight)
        layer.weight.copy_(torch.tensor([[-1.0, 0.0, 1.0]]) * step)
    penalty = BinRegularization(layer, 1.0, 0.0).penalty(1.0)
    penalty.backward()
    assert penalty.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(layer.weight.grad).all()


def test_bins_of_one_scale_for_a_whole_weight_span_its_rows():
    """As in the released code, where a weight has one scale."""

    class OneScale(LSQWeight):
        def scale(self, weight):
            return super().scale(weight).mean()

        def forward(self, weight):
            return self.position(weight).round() * self.scale(weight)

    layer = layer_of("lsq", 3)
    layer.weight_quantizer = OneScale(3)
    layer.weight_quantizer.initialize(layer.weight.detach())
    weight, scale = numbers(layer)
    value, _ = bins(weight.reshape(1, -1), "lsq", 3, scale.reshape(1, 1))
    penalty = BinRegularization(layer, 1.0, 0.0).penalty(1.0)
    assert penalty.item() == pytest.approx(value, rel=1e-5)


def test_bin_regularization_sets_in_at_a_quarter_and_rises_along_a_cosine():
    layer = layer_of("lsq", 2)
    regularization = BinRegularization(layer, strength=2.0, start=0.25)
    assert [float(regularization.penalty(share)) for share in (0.0, 0.25)] == [0, 0]
    full = regularization.penalty(1.0).item()
    for share in (0.3, 0.5, 0.8):
        expected = (1 - math.cos(math.pi * (share - 0.25) / 0.75)) / 2 * full
        assert regularization.penalty(share).item() == pytest.approx(expected, rel=1e-5)


def test_inducing_pushes_each_weight_against_what_dampening_does():
    layer = layer_of("lsq", 2)
    dampening = torch.autograd.grad(Dampening(layer, 1.0).penalty(1.0), layer.weight)[0]
    inducing = torch.autograd.grad(OscillationInducing(layer, 1.0).penalty(1.0), layer.weight)[0]
    torch.testing.assert_close(inducing, -dampening / layer.weight.numel())


@pytest.mark.parametrize("name", ["bin_regularization", "oscillation_inducing"])
def test_penalty_of_the_merged_weight_reaches_query_and_key(micro_model, name):
    model = ofq.quantize(micro_model, qkr=True)
    ofq.calibrate(model, torch.randn(2, 1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        penalty = make_technique(name, model, {}).penalty(0.5)
    assert penalty.dtype == torch.float32
    assert torch.equal(penalty, make_technique(name, model, {}).penalty(0.5))
    penalty.backward()
    merged = model.blocks[0].attn.scores.merged
    assert merged.q_weight.grad.abs().sum() > 0
    assert merged.k_weight.grad.abs().sum() > 0


def test_average_of_all_parameters_after_five_steps(micro_model):
    model = ofq.quantize(micro_model, weight_quantizer="lsq")
    images = torch.randn(4, 1, 8, 8)
    ofq.calibrate(model, images)
    average = WeightAverage(model, decay=0.8)
    expected = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    expected = {name: value.copy() for name, value in expected.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        average.step(optimizer)
        for name, parameter in model.named_parameters():
            expected[name] = 0.8 * expected[name] + 0.2 * parameter.detach().double().numpy()
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = average.evaluated(model)
    for name, parameter in result.named_parameters():
        np.testing.assert_allclose(parameter.numpy(), expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(trained[name], model.get_parameter(name))
    # the average is quantized anew, from averaged weights and scales
    other = copy.deepcopy(model)
    other.load_state_dict(result.state_dict())
    assert torch.equal(result.eval()(images), other.eval()(images))
    assert not torch.equal(result(images), model.eval()(images))


def adamw(state, weight, gradient, lr, decay=0.1):
    """One step of AdamW (0.9, 0.999, 1e-8) in float64."""
    first, second, t = state
    first, second, t = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2, t + 1
    root = np.sqrt(second / (1 - 0.999**t))
    weight = weight * (1 - lr * decay) - lr * first / (1 - 0.9**t) / (root + 1e-8)
    return (first, second, t), weight


def sgd(state, weight, gradient, lr):
    """One step of SGD with a momentum of 0.9 in float64."""
    state = 0.9 * state + gradient
    return state, weight - lr * state


OPTIMIZERS = [
    pytest.param(
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, fused=True),
        adamw, (0.0, 0.0, 0), id="adamw",
    ),
    pytest.param(lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), sgd, 0.0, id="sgd"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "step", "state"), OPTIMIZERS)
def test_latent_weights_follow_the_rate_of_their_transitions(make, step, state):
    layer = layer_of("lsq", 2)
    weight, scale = numbers(layer)
    bias = layer.bias.detach().double().numpy().copy()
    weight = weight.copy()
    technique = TransitionRate(layer, target=0.05, adaptation=0.3, momentum=0.6)
    optimizer = make([layer.weight, layer.bias])
    technique.attach(optimizer)
    others = state
    rate, running, codes = 0.02, 0.05, on_grid(weight, "lsq", 2, scale)[0]
    rates = []
    for number in range(5):
        gradient, other = np.random.default_rng(number).normal(size=(2, 6, 9))
        layer.weight.grad = torch.tensor(gradient).float()
        layer.bias.grad = torch.tensor(other[:, 0]).float()
        technique.step(optimizer, progress=number / 5)
        state, weight = step(state, weight, gradient, rate)
        others, bias = step(others, bias, other[:, 0], 0.02)
        new = on_grid(weight, "lsq", 2, scale)[0]
        running = 0.6 * running + 0.4 * (new != codes).mean()
        rate = max(0, rate + 0.3 * (0.025 * (1 + math.cos(math.pi * number / 5)) - running))
        codes = new
        rates.append(rate)
    assert len(set(rates)) > 2
    np.testing.assert_allclose(numbers(layer)[0], weight, rtol=0, atol=1e-6)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, rtol=0, atol=1e-6)
    assert technique.metrics() == pytest.approx(
        {"transition_rate": running, "latent_lr": rate}, rel=1e-5, abs=1e-7
    )


def test_rate_of_latent_weights_stops_at_zero():
    layer = layer_of("lsq", 2)
    technique = TransitionRate(layer, target=1e-6, adaptation=10.0, momentum=0.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    technique.attach(optimizer)
    layer.weight.grad = 10 * torch.randn_like(layer.weight)
    technique.step(optimizer)
    assert technique.metrics()["latent_lr"] == 0
    before = layer.weight.detach().clone()
    technique.step(optimizer)
    assert torch.equal(layer.weight, before)
    # a step without transitions is below any target
    assert technique.metrics()["latent_lr"] == pytest.approx(1e-5)


def test_codes_of_the_merged_weight_keep_their_schedule(micro_model):
    model = ofq.quantize(micro_model, qkr=True)
    technique = TransitionRate(model, target=0.1, adaptation=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    technique.attach(optimizer)
    optimizer.param_groups[0]["lr"] = 0.25  # as a schedule does
    technique.before_step(0.0)
    rates = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(model.blocks[0].mlp.fc1.weight)] == 0.5
    assert rates[id(model.blocks[0].attn.scores.merged.q_weight)] == 0.25
    assert rates[id(model.head.weight)] == 0.25


def test_transitions_without_the_optimizer_are_refused():
    layer = layer_of("lsq", 2)
    technique = TransitionRate(layer, target=0.1, adaptation=1.0)
    with pytest.raises(UserError, match=r"transition_rate: call attach\(optimizer\) before"):
        technique.step(torch.optim.SGD(layer.parameters(), lr=0.1))
    with pytest.raises(UserError, match="learning rates of the low-bit weights: none; allowed"):
        technique.attach(torch.optim.SGD([layer.bias], lr=0.1))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("bin_regularization", {"strength": 0}, "strength 0; allowed: a number above 0, finite"),
        ("bin_regularization", {"start": 1}, "start 1; allowed: a number from 0, below 1"),
        ("oscillation_inducing", {"strength": "1"}, "strength '1'; allowed: a number above 0"),
        ("weight_average", {}, "option 'decay' is missing"),
        ("weight_average", {"decay": 1.0}, "decay 1.0; allowed: a number above 0, below 1"),
        ("transition_rate", {"target": 2, "adaptation": 1}, "target 2; allowed: .* below 1"),
        ("transition_rate", {"target": 0.1, "adaptation": math.inf}, "adaptation inf; allowed"),
        ("transition_rate", {"target": 0.1, "adaptation": True}, "adaptation True; allowed"),
        ("transition_rate", {"target": 0.1, "adaptation": 1, "momentum": math.nan}, "momentum nan"),
    ],
)
def test_option_that_is_not_allowed_is_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        make_technique(name, layer_of("lsq", 2), options)


@pytest.mark.parametrize("gradient", ["inside", "everywhere"])
@pytest.mark.parametrize("bits", [2, 3])
def test_gradient_factor_of_lsq_can_be_the_sum_of_magnitudes(bits, gradient):
    w = (torch.randn(6, 20) * torch.logspace(-2, 1, 6)[:, None]).requires_grad_()
    upstream = torch.randn(6, 20)
    results = []
    for factor in ("count", "l1"):
        quantizer = LSQWeight(bits, gradient=gradient, gradient_factor=factor)
        quantizer.initialize(w.detach())
        w.grad = None
        out = quantizer(w)
        out.backward(upstream)
        results.append((out.detach(), w.grad, quantizer.lsq.scale.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    w64, up = w.detach().double().numpy(), upstream.double().numpy()
    high = 2 ** (bits - 1) - 1
    ratio = w64 / (2 * np.abs(w64).mean(-1, keepdims=True) / math.sqrt(high))
    inside = (ratio > -high - 1) & (ratio < high)
    slope = np.where(inside, np.rint(ratio) - ratio, np.clip(ratio, -high - 1, high))
    expected = (up * slope).sum(-1) / np.sqrt(np.abs(w64).sum(-1) * high)
    np.testing.assert_allclose(results[1][2].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_scale_of_a_row_of_zeros_gets_no_gradient_by_the_sum_of_magnitudes():
    quantizer = make_weight_quantizer("lsq", 2, torch.zeros(1, 4), {"gradient_factor": "l1"})
    quantizer(torch.zeros(1, 4)).sum().backward()
    assert quantizer.lsq.scale.grad.tolist() == [0]


def test_frozen_weights_move_the_scale_by_the_same_factor():
    moves = []
    for factor in ("count", "l1"):
        torch.manual_seed(0)
        layer = layer_of("lsq", 3, gradient_factor=factor)
        freezing = IterativeFreezing(layer)
        freezing.histories[0].frequency.fill_(1.0)
        scale = layer.weight_quantizer.lsq.scale
        freezing.step(torch.optim.SGD([scale], lr=0.0))
        layer.weight.grad = torch.randn_like(layer.weight)
        scale.grad = torch.zeros_like(scale)
        freezing.step(torch.optim.SGD([scale], lr=0.0))
        moves.append(scale.grad)
    mean = np.abs(numbers(layer)[0]).mean(-1)
    np.testing.assert_allclose(moves[1].numpy(), moves[0].numpy() / np.sqrt(mean), rtol=1e-4)


def test_gradient_factor_that_is_not_allowed_is_refused():
    with pytest.raises(UserError, match="gradient_factor 'l2'; allowed: 'count', 'l1'"):
        make_weight_quantizer("lsq", 2, torch.randn(6, 20), {"gradient_factor": "l2"})
