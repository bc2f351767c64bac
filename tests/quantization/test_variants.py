"""Variants, controls and baselines against their equations in NumPy, float64."""

import math
from inspect import signature
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

import ofq
from ofq.errors import UserError
from ofq.quantization import (
    Dampening,
    FreezeAll,
    IterativeFreezing,
    LearnedStatsQ,
    LSQWeight,
    RatioAnnealing,
    StatisticalLSQ,
    StatsQMoments,
    low_bit_weights,
)
from ofq.quantization.layers import Passthrough, QuantizedLinear
from ofq.quantization.lowrank import factorize
from ofq.quantization.quantizers.base import make_weight_quantizer, weight_quantizers

from tests.support.reference import statsq

BITS = [2, 3, 4]
FORMS = [(2.0, "inside"), (2.0, "everywhere"), (0.7, "inside"), (3.1, "everywhere")]
"""Options ``factor`` and ``gradient``."""
NAMES = [name for name, made in weight_quantizers.items() if made.__module__.startswith("ofq.")]


def one_layer(name="statsq", bits=2, rows=16, columns=32):
    linear = nn.Linear(columns, rows)
    quantizer = make_weight_quantizer(name, bits, linear.weight)
    return QuantizedLinear(linear, quantizer, Passthrough(), {"fc1": slice(0, rows)})


def normal_row(count=100_000):
    """Return quantiles of the standard normal distribution, (1, count), float64."""
    inverse = NormalDist().inv_cdf
    return np.array([[inverse((i + 0.5) / count) for i in range(count)]])


def beyond(limit):
    """Return the share of a standard normal distribution outside [−limit, limit]."""
    return math.erfc(limit / math.sqrt(2))


def adamw(weight, gradients, *, lr, decay, eps):
    """AdamW (0.9, 0.999) in float64; returns the weights after the given gradients."""
    first, second = 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        root = np.sqrt(second / (1 - 0.999**t))
        weight = weight * (1 - lr * decay) - lr * first / (1 - 0.9**t) / (root + eps)
    return weight


def off_ties(position):
    return np.abs(position - np.floor(position) - 0.5) > 1e-4


@pytest.mark.parametrize("bits", BITS)
def test_moments_form_has_evenly_spaced_levels_within_a_multiple_of_the_deviation(bits):
    w = torch.randn(12, 40)
    w64 = w.double().numpy()
    limit = (2 ** (bits - 1) - 0.5) * w64.std(-1, ddof=1, keepdims=True) + 1e-5
    clipped = np.clip(w64, -limit, limit)
    place = (clipped + limit) / (2 * limit) * (2**bits - 1)
    expected = np.rint(place) * 2 * limit / (2**bits - 1) - limit
    safe = off_ties(place)
    np.testing.assert_allclose(StatsQMoments(bits)(w).numpy()[safe], expected[safe], atol=1e-5)


@pytest.mark.parametrize(("bits", "percent"), [(2, 86.64), (3, 99.953), (4, 100.0)])
def test_range_of_the_moments_form_covers_these_shares_of_normal_weights(bits, percent):
    w = normal_row()
    limit = StatsQMoments(bits).scale(torch.tensor(w)).item()
    assert limit == pytest.approx(2 ** (bits - 1) - 0.5, rel=1e-3)
    assert 100 * (np.abs(w) <= limit).mean() == pytest.approx(percent, abs=0.01)
    assert 100 * (1 - beyond(2 ** (bits - 1) - 0.5)) == pytest.approx(percent, abs=0.005)


def test_moments_form_has_one_step_at_all_bits_so_its_fourth_bit_is_hardly_used():
    w = torch.tensor(normal_row()).float()
    deviation = w.double().numpy().std(ddof=1)
    for bits in BITS:
        step = StatsQMoments(bits).step_size(w).item()
        assert step == pytest.approx(deviation + 2e-5 / (2**bits - 1), rel=1e-6)
    differ = ((StatsQMoments(3)(w) - StatsQMoments(4)(w)).abs() > 0.5).double().mean().item()
    assert differ == pytest.approx(beyond(4.0), abs=2e-5)


@pytest.mark.parametrize(
    ("name", "bits", "error"),
    [
        ("statsq", 2, 0.1375), ("statsq", 3, 0.0705), ("statsq", 4, 0.0490),
        ("statsq_moments", 2, 0.1189), ("statsq_moments", 3, 0.0834), ("statsq_moments", 4, 0.0833),
    ],
)  # fmt: skip
def test_squared_error_of_normal_weights_is_as_documented(name, bits, error):
    w = normal_row()
    quantized = make_weight_quantizer(name, bits, torch.tensor(w))(torch.tensor(w)).numpy()
    assert ((w - quantized) ** 2).mean() == pytest.approx(error, abs=1e-4)


def passed(inside, gradient):
    return np.ones_like(inside) if gradient == "everywhere" else inside


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("factor", "gradient"), FORMS)
def test_statistical_scale_on_the_grid_of_lsq(bits, factor, gradient):
    w = (torch.randn(12, 40) * 2).requires_grad_()
    w64 = w.detach().double().numpy()
    high = 2 ** (bits - 1) - 1
    scale = factor * np.abs(w64).mean(-1, keepdims=True) / math.sqrt(high)
    ratio = w64 / scale
    expected = np.rint(np.clip(ratio, -high - 1, high)) * scale
    upstream = torch.randn(12, 40)
    out = StatisticalLSQ(bits, factor, gradient)(w)
    out.backward(upstream)
    safe = off_ties(ratio)
    np.testing.assert_allclose(out.detach().numpy()[safe], expected[safe], rtol=1e-5, atol=1e-6)
    inside = (ratio > -high - 1) & (ratio < high)
    np.testing.assert_array_equal(w.grad.numpy(), upstream.numpy() * passed(inside, gradient))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("factor", "gradient"), FORMS)
def test_grid_of_statsq_with_other_scales_and_gradients(bits, factor, gradient):
    w = (torch.randn(12, 40) * 2).requires_grad_()
    w64 = w.detach().double().numpy()
    half = 2 ** (bits - 1)
    step = factor * np.abs(w64).mean(-1, keepdims=True) / half
    place = w64 / step - 0.5
    expected = (np.rint(np.clip(place, -half, half - 1)) + 0.5) * step
    upstream = torch.randn(12, 40)
    out = ofq.StatsQ(bits, factor, gradient)(w)
    out.backward(upstream)
    safe = off_ties(place)
    np.testing.assert_allclose(out.detach().numpy()[safe], expected[safe], rtol=1e-5, atol=1e-6)
    inside = (place > -half) & (place < half - 1)
    np.testing.assert_array_equal(w.grad.numpy(), upstream.numpy() * passed(inside, gradient))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("factor", "gradient"), FORMS)
def test_lsq_with_other_initial_scales_and_gradients(bits, factor, gradient):
    w = (torch.randn(6, 20) * 2).requires_grad_()
    quantizer = LSQWeight(bits, factor, gradient)
    quantizer.initialize(w.detach())
    upstream = torch.randn(6, 20)
    out = quantizer(w)
    out.backward(upstream)
    w64, up = w.detach().double().numpy(), upstream.double().numpy()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = factor * np.abs(w64).mean(-1, keepdims=True) / math.sqrt(high)
    ratio = w64 / scale
    codes = np.rint(np.clip(ratio, low, high))
    safe = off_ties(ratio)
    np.testing.assert_allclose(
        out.detach().numpy()[safe], (codes * scale)[safe], rtol=1e-5, atol=1e-6
    )
    inside = (ratio > low) & (ratio < high)
    np.testing.assert_allclose(w.grad.numpy(), up * passed(inside, gradient), atol=1e-6)
    slope = np.where(inside, codes - ratio, codes)
    expected = (up * slope).sum(-1) / math.sqrt(high * w.shape[1])
    np.testing.assert_allclose(quantizer.lsq.scale.grad.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("factor", "gradient"), FORMS)
def test_learned_scale_starts_on_the_levels_of_statsq(bits, factor, gradient):
    w = torch.randn(12, 40)
    quantizer = LearnedStatsQ(bits, factor, gradient)
    quantizer.initialize(w)
    torch.testing.assert_close(quantizer(w), ofq.StatsQ(bits, factor)(w), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("factor", "gradient"), FORMS)
def test_learned_scale_has_the_gradients_of_lsq_on_the_shifted_grid(bits, factor, gradient):
    w = (torch.randn(6, 20) * 2).requires_grad_()
    quantizer = LearnedStatsQ(bits, factor, gradient)
    quantizer.initialize(w.detach())
    upstream = torch.randn(6, 20)
    quantizer(w).backward(upstream)
    step = quantizer.learned.detach().double().numpy()[:, None]
    u, up = w.detach().double().numpy() / step, upstream.double().numpy()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    place = np.clip(u - 0.5, low, high)
    inside = place == u - 0.5
    slope = np.where(inside, np.rint(place) + 0.5 - u, place + 0.5)
    g = 1 / math.sqrt(high * w.shape[1])
    np.testing.assert_allclose(w.grad.numpy(), up * passed(inside, gradient), atol=1e-6)
    expected = g * (up * slope).sum(-1)
    np.testing.assert_allclose(quantizer.learned.grad.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_initial_scale_of_lsq_can_be_chosen():
    w = torch.randn(6, 20)
    quantizer = make_weight_quantizer("lsq", 2, w, {"factor": 1.25})
    torch.testing.assert_close(quantizer.scale(w).flatten(), 1.25 * w.abs().mean(-1))
    with pytest.raises(UserError, match=r"weight quantizer 'lsq'.*faktor"):
        make_weight_quantizer("lsq", 2, w, {"faktor": 1.25})


@pytest.mark.parametrize("name", ["lsq", "lsq_statistical", "statsq", "statsq_learned"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 0}, "factor 0; allowed: a finite number above 0"),
        ({"factor": "2"}, "factor '2'; allowed"),
        ({"gradient": "outside"}, "gradient 'outside'; allowed: 'everywhere', 'inside'"),
        ({"gradient": 1.0}, "gradient 1.0; allowed"),
    ],
)
def test_options_that_are_not_allowed_are_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        make_weight_quantizer(name, 2, torch.randn(6, 20), options)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in NAMES]
    + [
        (name, {"factor": factor, "gradient": gradient})
        for name in NAMES
        if "factor" in signature(weight_quantizers[name]).parameters
        for factor, gradient in FORMS
    ],
)
def test_every_quantizer_agrees_with_itself(name, options, bits):
    """Value, codes, levels and steps of the one interface belong together."""
    w = torch.randn(9, 33)
    quantizer = make_weight_quantizer(name, bits, w, options)
    codes = quantizer.codes(w)
    assert codes.min() >= quantizer.lowest
    assert codes.max() <= quantizer.highest
    torch.testing.assert_close(quantizer.level(w, codes), quantizer(w))
    assert torch.equal(quantizer.decode(codes.float(), quantizer.scale(w)), quantizer(w))
    apart = quantizer.level(w, codes + 1) - quantizer.level(w, codes)
    torch.testing.assert_close(apart, quantizer.step_size(w).expand_as(w), rtol=1e-4, atol=1e-5)
    if name == "dorefa":
        return  # its steps have no constant length in w
    nearest = (w - quantizer(w)).abs() <= quantizer.step_size(w) / 2 + 1e-5
    ends = (codes == quantizer.lowest) | (codes == quantizer.highest)
    assert (nearest | ends).all()


@pytest.mark.parametrize("reading", ["as_written", "as_intended"])
def test_ratio_form_zeroes_or_damps_gradients(reading):
    layer = one_layer()
    with torch.no_grad():
        layer.weight[0, 0] = 40.0  # far outside the range of levels
    weight = layer.weight.detach().double().numpy()
    scale = statsq(weight, 2)[0]
    levels = scale[..., None] * (np.arange(-2, 2) + 0.5) / 2
    distance = np.abs(weight[..., None] - levels)
    ratio = distance.min(-1) / distance.max(-1)
    confidence = ratio if reading == "as_written" else 1 - ratio
    annealing = RatioAnnealing(layer, alpha=0.9, confidence=reading)
    gradient = torch.randn(16, 32)
    layer.weight.grad = gradient.clone()
    annealing.step(torch.optim.SGD(layer.parameters(), lr=0.0))
    expected = np.where(confidence > 0.5, 0, 0.9 * gradient.double().numpy())
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, rtol=1e-5)
    assert annealing.frozen_share() == pytest.approx(100 * (confidence > 0.5).mean())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["statsq", "statsq_moments"])
def test_ratio_form_as_written_freezes_only_far_outliers(name, bits):
    w = normal_row(200_000)
    layer = one_layer(name, bits, 1, w.size)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(w))
    mean_step = {"statsq": 2 * math.sqrt(2 / math.pi) / 2 ** (bits - 1), "statsq_moments": 1.0}
    # the outermost levels are (2^b − 1)/2 steps from zero, and 2^b − 1 steps further out c is ½
    expected = 100 * beyond(1.5 * (2**bits - 1) * mean_step[name])
    assert RatioAnnealing(layer).frozen_share() == pytest.approx(expected, abs=1.1e-3)
    intended = RatioAnnealing(layer, confidence="as_intended").frozen_share()
    assert intended == pytest.approx(100 - expected, abs=1.1e-3)


@pytest.mark.parametrize(("bits", "highest"), [(2, 1 / 3), (3, 1 / 7), (4, 1 / 15)])
def test_ratio_between_the_outermost_levels_is_highest_on_the_middle_threshold(bits, highest):
    levels = np.arange(2**bits)
    place = np.linspace(0, 2**bits - 1, 1_001)
    distance = np.abs(place[:, None] - levels)
    ratio = distance.min(-1) / distance.max(-1)
    assert ratio.max() == pytest.approx(highest)
    assert place[ratio.argmax()] == pytest.approx((2**bits - 1) / 2)


def trained(confidence, optimizer_of, gradients):
    """Return a layer of float64 weights, and its weights before the given gradients."""
    layer = one_layer().double()
    before = layer.weight.detach().numpy().copy()
    annealing = RatioAnnealing(layer, alpha=0.9, confidence=confidence)
    optimizer = optimizer_of([layer.weight])
    for gradient in gradients:
        layer.weight.grad = torch.tensor(gradient)
        annealing.step(optimizer)
    return layer, before


def test_alpha_under_adamw_only_divides_epsilon():
    gradients = np.random.default_rng(0).normal(size=(30, 16, 32)) * 1e-3
    settings = {"lr": 1e-3, "decay": 0.1}
    layer, before = trained(
        "as_written",
        lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, eps=1e-8),
        gradients,
    )
    found = layer.weight.detach().numpy()
    exact = adamw(before, gradients, eps=1e-8 / 0.9, **settings)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-13)
    without = adamw(before, gradients, eps=1e-8, **settings)
    moved = np.abs(without - before).mean()
    assert 0 < np.abs(found - without).mean() < 1e-5 * moved


def test_alpha_under_sgd_is_a_factor_on_the_rate():
    gradients = np.random.default_rng(0).normal(size=(5, 16, 32)) * 1e-3
    layer, before = trained("as_written", lambda p: torch.optim.SGD(p, lr=0.1), gradients)
    expected = before - 0.09 * gradients.sum(0)
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_alpha_that_sets_in_late_lowers_the_steps_of_adamw_for_a_while():
    """A constant gradient; QAT's moments would be such a history, if CGA went on with them."""
    layer = one_layer().double()
    optimizer = torch.optim.AdamW([layer.weight], lr=1e-6, weight_decay=0.0)
    annealing = RatioAnnealing(layer, alpha=0.9)
    moves = []
    for step in range(8_000):
        layer.weight.grad = torch.ones_like(layer.weight)
        before = layer.weight[0, 0].item()
        optimizer.step() if step < 3_000 else annealing.step(optimizer)
        moves.append((before - layer.weight[0, 0].item()) / 1e-6)
    late = np.array(moves[3_000:])
    t = np.arange(1, 5_001)
    # the histories of m and v with weights 0.9 and 0.999; v's bias is 1 − 0.999^(3000 + t)
    second = (0.81 * (1 - 0.999**t) + 0.999**t * (1 - 0.999**3000)) / (1 - 0.999 ** (3000 + t))
    expected = (0.9 + 0.1 * 0.9**t) / np.sqrt(second)
    np.testing.assert_allclose(late, expected, atol=1e-4)


def test_ratio_form_as_intended_leaves_codes_to_decay_alone():
    gradients = np.random.default_rng(0).normal(size=(20, 16, 32))
    layer, before = trained(
        "as_intended", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1), gradients
    )
    found = layer.weight.detach().numpy()
    np.testing.assert_allclose(found, before * (1 - 0.01) ** 20, rtol=1e-12)
    codes = layer.weight_quantizer.codes
    assert torch.equal(codes(layer.weight), codes(torch.tensor(before)))


def test_ratio_form_does_not_hold_weights_against_momentum():
    layer = one_layer()
    optimizer = torch.optim.AdamW([layer.weight], lr=0.01, weight_decay=0.0)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.ones_like(layer.weight)
    RatioAnnealing(layer, confidence="as_intended").step(optimizer)
    assert (layer.weight.grad == 0).all()
    assert (layer.weight < before).all()


def test_freezing_all_moves_no_low_bit_weight():
    layer = one_layer()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer(torch.randn(4, 32)).square().sum().backward()
    annealing = FreezeAll(layer)
    annealing.step(optimizer)
    assert torch.equal(layer.weight, before)
    assert not torch.equal(layer.bias, bias)
    assert annealing.frozen_share() == 100


def test_low_rank_form_starts_at_the_best_approximation(micro_model):
    qkv = micro_model.blocks[0].attn.qkv
    weight = qkv.weight.detach()[:48].double().numpy()
    inner, outer = factorize(qkv.weight[:48], qkv.bias[:48])
    assert inner.weight.shape == (24, 48)
    assert outer.weight.shape == (48, 24)
    assert inner.weight.numel() + outer.weight.numel() == weight.size
    assert torch.equal(outer.bias, qkv.bias[:48])
    product = (outer.weight @ inner.weight).detach().double().numpy()
    values = np.linalg.svd(weight, compute_uv=False)
    assert np.linalg.norm(weight - product) == pytest.approx(np.linalg.norm(values[24:]), rel=1e-4)
    norms = [np.linalg.norm(m.weight.detach().numpy()) for m in (inner, outer)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_low_rank_factors_are_quantized_and_annealed_apart(micro_model):
    model = ofq.quantize(micro_model, qkr="lowrank")
    images = torch.randn(2, 1, 8, 8)
    ofq.calibrate(model, images)
    roles = [next(iter(w.roles)) for w in low_bit_weights(model) if "blocks.0" in w.layer]
    assert sorted(roles) == ["fc1", "fc2", "k", "k", "proj", "q", "q", "v"]
    ofq.ConfidenceGuidedAnnealing(model)
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_iterative_freezing_holds_oscillating_weights_on_their_level():
    layer = one_layer("lsq")
    freezing = IterativeFreezing(layer, start=0.02, end=0.02, momentum=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    step = layer.weight_quantizer.step_size(layer.weight)[0, 0]
    with torch.no_grad():
        layer.weight[0, 0] = 0.45 * step
    freezing.histories[0].previous = layer.weight_quantizer.codes(layer.weight)
    for number in range(8):
        with torch.no_grad():
            layer.weight[0, 0] = (0.55 if number % 2 == 0 else 0.45) * step
        freezing.step(optimizer, progress=0.0)
    assert freezing.histories[0].frozen[0, 0]
    assert freezing.histories[0].frozen.sum() == 1
    code = layer.weight_quantizer.position(layer.weight)[0, 0].item()
    assert code == pytest.approx(round(code), abs=1e-5)
    assert freezing.frozen_share() == pytest.approx(100 / layer.weight.numel())


@pytest.mark.parametrize("name", ["lsq", "statsq_learned"])
def test_learned_scale_learns_from_frozen_weights(name):
    """Held at their codes, they are code times scale: by LSQ's g times that derivative."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 3, bias=False)
    quantizer = make_weight_quantizer(name, 3, linear.weight)
    layer = QuantizedLinear(linear, quantizer, Passthrough(), {"row": slice(0, 3)})
    freezing = IterativeFreezing(layer)
    freezing.histories[0].frequency[:, ::2] = 1.0  # every other weight freezes
    [scale] = [p for p in layer.parameters() if p.numel() == 3]
    optimizer = torch.optim.SGD([scale], lr=0.0)
    freezing.step(optimizer, progress=0.0)
    frozen = freezing.histories[0].frozen
    assert 0 < frozen.sum() < frozen.numel()
    inputs, aims = torch.randn(16, 8), torch.randn(16, 3)

    (layer(inputs) - aims).square().mean().backward()
    free = scale.grad.clone()
    freezing.step(optimizer, progress=0.0)

    codes = freezing.histories[0].frozen_codes.double() + (0.5 if name == "statsq_learned" else 0)
    others = torch.where(frozen, 0, quantizer(linear.weight).detach().double())

    def loss(scales):
        weight = torch.where(frozen, codes * scales[:, None], others)
        return (inputs.double() @ weight.T - aims.double()).square().mean()

    held = torch.autograd.functional.jacobian(loss, scale.detach().double())
    expected = free + held.float() / math.sqrt(3 * 8)
    torch.testing.assert_close(scale.grad, expected, rtol=1e-4, atol=1e-6)


def test_threshold_of_iterative_freezing_falls_along_a_cosine():
    layer = one_layer("lsq")
    freezing = IterativeFreezing(layer, start=0.04, end=0.01)
    seen = []
    for progress in (0.0, 0.5, 1.0):
        freezing.step(torch.optim.SGD(layer.parameters(), lr=0.0), progress=progress)
        seen.append(freezing.histories[0].threshold)
    assert seen == pytest.approx([0.04, 0.025, 0.01])


def test_dampening_is_the_squared_distance_to_the_levels_within_the_range():
    layer = one_layer("lsq")
    weight = layer.weight.detach().double().numpy()
    scale = layer.weight_quantizer.scale(layer.weight).double().numpy()
    value = np.rint(np.clip(weight / scale, -2, 1)) * scale
    clipped = np.clip(weight, -2 * scale, scale)
    dampening = Dampening(layer, strength=3.0)
    assert dampening.penalty(0.0).item() == 0
    halfway = dampening.penalty(0.5)
    assert halfway.item() == pytest.approx(1.5 * ((value - clipped) ** 2).sum(), rel=1e-5)
    halfway.backward()
    inside = (weight > -2 * scale) & (weight < scale)
    expected = 1.5 * 2 * (clipped - value) * inside
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, atol=1e-5)


def test_lsq_weight_scale_gets_its_own_learning_rate(micro_model):
    from ofq.config import Training
    from ofq.training.optimization import make_optimizer, make_schedule

    model = ofq.quantize(micro_model, weight_quantizer="lsq")
    training = Training(epochs=2, batch_size=1, lr=0.01, min_lr=0.01, weight_decay=0.1)
    optimizer = make_optimizer(model, training, scale_lr=10.0)
    make_schedule(optimizer, training).step(0)
    scales = {id(p) for m in model.modules() if isinstance(m, LSQWeight) for p in m.parameters()}
    rates = {g["lr"] for g in optimizer.param_groups for p in g["params"] if id(p) in scales}
    others = {g["lr"] for g in optimizer.param_groups for p in g["params"] if id(p) not in scales}
    assert (rates, others) == ({0.1}, {0.01})


@pytest.mark.parametrize(
    ("pattern", "roles"), [("blocks.0.*", 6), ("*.mlp.fc1", 4), ("blocks.3.attn.qkv", 3)]
)
def test_bits_can_differ_by_layer(micro_model, pattern, roles):
    model = ofq.quantize(micro_model, 2, 2, layer_bits={pattern: (4, 3)})
    weights = list(low_bit_weights(model))
    changed = [role for w in weights if w.quantizer.bits == 4 for role in w.roles]
    assert len(changed) == roles
    assert all(w.quantizer.bits in (2, 4) for w in weights)


def test_the_last_matching_pattern_wins_and_ends_can_be_named(micro_model):
    bits = {"blocks.*": (3, 3), "blocks.1.mlp.fc2": (32, 32), "head": (4, 32)}
    model = ofq.quantize(micro_model, 2, 2, layer_bits=bits, first_last_bits=(6, 6))
    assert model.blocks[0].mlp.fc1.weight_quantizer.bits == 3
    assert isinstance(model.blocks[1].mlp.fc2.weight_quantizer, nn.Identity)
    assert isinstance(model.blocks[1].mlp.fc2.input_quantizer, Passthrough)
    assert model.patch_embed.proj.weight_quantizer.bits == 6
    assert model.head.weight_quantizer.bits == 4
    assert not hasattr(model.head.input_quantizer, "quantizer")


def test_pattern_that_matches_nothing_is_an_error(micro_model):
    with pytest.raises(UserError, match=r"'block\.\*' matches no layer; there are patch_embed"):
        ofq.quantize(micro_model, layer_bits={"block.*": (4, 4)})
