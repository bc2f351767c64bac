"""The field's other quantizers against their equations in NumPy, float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from timm.models import VisionTransformer

import ofq
from ofq.errors import UserError
from ofq.quantization import (
    EWGS,
    PACT,
    ClipPenalty,
    DoReFa,
    EWGSActivation,
    LSQPlus,
    LSQPlusWeight,
    make_technique,
)
from ofq.quantization.quantizers.base import make_weight_quantizer, weight_quantizers

BITS = [2, 3, 4]
OWN = [name for name, made in weight_quantizers.items() if made.__module__.startswith("ofq.")]


def nano_deit():
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3
    )


def off_ties(position):
    return np.abs(position - np.floor(position) - 0.5) > 1e-4


def sgd(state, gradient_of, steps, lr):
    """SGD in float64; unlike AdamW's, its steps show a factor on gradients."""
    for _ in range(steps):
        state = state - lr * gradient_of(state)
    return state


@pytest.mark.parametrize("bits", BITS)
def test_scale_of_lsqplus_starts_at_three_deviations(bits):
    w = torch.randn(5, 64) + torch.linspace(-2, 2, 5)[:, None]
    quantizer = LSQPlusWeight(bits)
    quantizer.initialize(w)
    rows = w.double().numpy()
    mean, reach = rows.mean(1), 3 * rows.std(1, ddof=1)
    expected = np.maximum(np.abs(mean - reach), np.abs(mean + reach)) / 2 ** (bits - 1)
    np.testing.assert_allclose(quantizer.scale(w).flatten().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_lsqplus_learns_scale_and_offset(bits, signed):
    quantizer = LSQPlus(bits, axis=-1, signed=signed)
    first = torch.randn(7, 4) + 1
    quantizer(first)
    low, high = quantizer.range
    least, greatest = first.double().numpy().min(0), first.double().numpy().max(0)
    scale, offset = (p.detach().double().numpy() for p in (quantizer.scale, quantizer.offset))
    np.testing.assert_allclose(low * scale + offset, least, atol=1e-5)
    np.testing.assert_allclose(high * scale + offset, greatest, atol=1e-5)
    x = (2 * torch.randn(50, 4) + 1).requires_grad_()
    upstream = torch.randn(50, 4)
    out = quantizer(x)
    out.backward(upstream)
    u = (x.detach().double().numpy() - offset) / scale
    up = upstream.double().numpy()
    code, inside = np.rint(np.clip(u, low, high)), (u > low) & (u < high)
    safe = off_ties(u)
    np.testing.assert_allclose(out.detach().numpy()[safe], (code * scale + offset)[safe], atol=1e-5)
    np.testing.assert_array_equal(quantizer.codes(x).numpy()[safe], code[safe])
    g = 1 / math.sqrt(high * 50)
    np.testing.assert_allclose(x.grad.numpy(), up * inside, atol=1e-6)
    slope = np.where(inside, code - u, code)
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), g * (up * slope).sum(0), atol=2e-4)
    expected = g * (up * ~inside).sum(0)
    np.testing.assert_allclose(quantizer.offset.grad.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("base", ["lsq", "statsq", "lsq_statistical"])
def test_ewgs_scales_the_gradients_of_its_base_by_the_distance_to_the_grid(base, bits):
    w, upstream = torch.randn(6, 40), torch.randn(6, 40)
    plain, scaled = (
        make_weight_quantizer(name, bits, w, options)
        for name, options in ((base, {}), ("ewgs", {"base": base, "delta": 0.3}))
    )
    one, other = (w.clone().requires_grad_() for _ in range(2))
    plain_out, scaled_out = plain(one), scaled(other)
    assert torch.equal(plain_out, scaled_out)
    plain_out.backward(upstream)
    scaled_out.backward(upstream)
    position = plain.position(w).double().numpy()
    distance = position - np.rint(position)
    of_base = one.grad.double().numpy()
    expected = of_base * (1 + 0.3 * np.sign(of_base) * distance)
    np.testing.assert_allclose(other.grad.numpy(), expected, atol=1e-6)
    for own, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own.grad, theirs.grad)


def test_ewgs_without_a_factor_is_its_base():
    quantizer = EWGS(2, delta=0, base="statsq")
    w = torch.randn(4, 16, requires_grad=True)
    upstream = torch.randn(4, 16)
    quantizer(w).backward(upstream)
    assert torch.equal(w.grad, upstream)


def test_ewgs_of_an_activation_leaves_values_and_scale_gradients_to_lsq():
    x, upstream = torch.randn(30, 5), torch.randn(30, 5)
    plain, scaled = ofq.LSQ(3, axis=-1), EWGSActivation(3, axis=-1, delta=0.3)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    plain_out, scaled_out = plain(one), scaled(other)
    assert torch.equal(plain_out, scaled_out)
    plain_out.backward(upstream)
    scaled_out.backward(upstream)
    torch.testing.assert_close(scaled.scale.grad, plain.scale.grad)
    u = x.double().numpy() / plain.scale.detach().double().numpy()
    of_base = one.grad.double().numpy()
    expected = of_base * (1 + 0.3 * np.sign(of_base) * (u - np.rint(u)))
    np.testing.assert_allclose(other.grad.numpy(), expected, atol=1e-5)


def dorefa(w, upstream, bits, levels):
    """Values of DoReFa's weights, their gradient, and where they lie between levels."""
    m = 2**bits - 1
    bent = np.tanh(w)
    largest = np.abs(bent).max()
    place = m * (bent / (2 * largest) + 0.5)
    unit = 2 * np.rint(place) / m - 1
    c = 1 if levels == "unit" else np.abs(w).mean() / np.abs(unit).mean()
    gradient = c * upstream / largest
    most = np.unravel_index(np.abs(bent).argmax(), bent.shape)
    gradient[most] -= np.sign(bent[most]) * c * (upstream * bent).sum() / largest**2
    return c * unit, gradient * (1 - bent**2), place


@pytest.mark.parametrize("levels", ["unit", "matched"])
@pytest.mark.parametrize("bits", BITS)
def test_dorefa_rounds_the_hyperbolic_tangent_of_weights(bits, levels):
    w = (torch.randn(8, 30) * 0.5).requires_grad_()
    upstream = torch.randn(8, 30)
    out = DoReFa(bits, levels)(w)
    out.backward(upstream)
    w64, up = w.detach().double().numpy(), upstream.double().numpy()
    expected, gradient, place = dorefa(w64, up, bits, levels)
    safe = off_ties(place)
    assert safe.mean() > 0.99
    np.testing.assert_allclose(out.detach().numpy()[safe], expected[safe], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(w.grad.numpy(), gradient, rtol=1e-4, atol=1e-5)
    if levels == "matched":
        assert out.abs().mean().item() == pytest.approx(w.abs().mean().item(), rel=1e-5)


def test_five_steps_on_weights_by_dorefa_are_those_of_the_equations():
    w, target = torch.randn(4, 12) * 0.5, torch.randn(4, 12)
    latent = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.SGD([latent], lr=0.01)
    quantizer = DoReFa(3)
    for _ in range(5):
        optimizer.zero_grad()
        (quantizer(latent) - target).square().sum().backward()
        optimizer.step()

    def gradient(weight):
        value, _, _ = dorefa(weight, weight, 3, "matched")
        return dorefa(weight, 2 * (value - target.double().numpy()), 3, "matched")[1]

    expected = sgd(w.double().numpy(), gradient, 5, 0.01)
    np.testing.assert_allclose(latent.detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "delta"), [("lsqplus", {}, 0.0), ("ewgs", {"delta": 0.4}, 0.4)]
)
def test_five_steps_on_weights_and_scales_are_those_of_the_equations(name, options, delta):
    w, target = torch.randn(4, 12), 2 * torch.randn(4, 12)
    latent = torch.nn.Parameter(w.clone())
    quantizer = make_weight_quantizer(name, 3, w, options)
    (scale,) = quantizer.parameters()
    start = np.concatenate([w.flatten().numpy(), scale.detach().numpy()]).astype(np.float64)
    optimizer = torch.optim.SGD([latent, scale], lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        (quantizer(latent) - target).square().sum().backward()
        optimizer.step()

    def gradient(state):
        step = state[48:, None]
        u = state[:48].reshape(4, 12) / step
        code, inside = np.rint(np.clip(u, -4, 3)), (u > -4) & (u < 3)
        up = 2 * (code * step - target.double().numpy())
        of_weight = up * inside * (1 + delta * np.sign(up) * (u - code))
        of_step = (up * np.where(inside, code - u, code)).sum(1) / math.sqrt(3 * 12)
        return np.concatenate([of_weight.ravel(), of_step])

    end = sgd(start, gradient, 5, 0.01)
    np.testing.assert_allclose(latent.detach().flatten().numpy(), end[:48], atol=2e-5)
    np.testing.assert_allclose(scale.detach().numpy(), end[48:], atol=2e-5)


def of_lsqplus(state, x, target):
    """Gradients of LSQ+'s scales and offsets, 3 bits and unsigned."""
    scale, offset = state[:4], state[4:]
    u = (x - offset) / scale
    code, inside = np.rint(np.clip(u, 0, 7)), (u > 0) & (u < 7)
    up = 2 * (code * scale + offset - target) / math.sqrt(7 * len(x))
    slope = np.where(inside, code - u, code)
    return np.concatenate([(up * slope).sum(0), (up * ~inside).sum(0)])


def of_pact(state, x, target):
    """Gradient of PACT's clipping values, 3 bits and unsigned."""
    code = np.rint(np.clip(x / (state / 7), 0, 7))
    return (2 * (code * state / 7 - target) * (x >= state)).sum(0)


@pytest.mark.parametrize(("made", "gradient"), [(LSQPlus, of_lsqplus), (PACT, of_pact)])
def test_five_steps_on_what_activations_learn_are_those_of_the_equations(made, gradient):
    x, target = torch.randn(40, 4) + 0.5, torch.randn(40, 4) + 1
    quantizer = made(3, axis=-1, signed=False)
    quantizer(0.7 * torch.randn(9, 4))
    start = np.concatenate([p.detach().numpy() for p in quantizer.parameters()]).astype(np.float64)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        (quantizer(x) - target).square().sum().backward()
        optimizer.step()
    x64, target64 = x.double().numpy(), target.double().numpy()
    end = sgd(start, lambda state: gradient(state, x64, target64), 5, 0.01)
    found = np.concatenate([p.detach().numpy() for p in quantizer.parameters()])
    assert np.abs(end - start).max() > 0.05
    np.testing.assert_allclose(found, end, atol=2e-5)


FINITE = st.floats(-8, 8, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
BASES = [name for name in OWN if name != "ewgs"]


@given(
    arrays(np.float32, (3, 7), elements=FINITE),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(
        [
            ("lsqplus", {}),
            ("dorefa", {"levels": "unit"}),
            ("dorefa", {"levels": "matched"}),
            *(("ewgs", {"base": base}) for base in BASES),
        ]
    ),
)
def test_every_value_is_the_level_of_a_code_in_range(w, bits, form):
    name, options = form
    weight = torch.from_numpy(w)
    quantizer = make_weight_quantizer(name, bits, weight, options)
    codes = quantizer.codes(weight)
    assert torch.equal(codes, quantizer.position(weight).round().to(torch.int8))
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() <= 2 ** (bits - 1) - 1
    assert torch.equal(quantizer.decode(codes.float(), quantizer.scale(weight)), quantizer(weight))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_pact_clips_at_a_learned_value_whose_gradient_sees_no_rounding(bits, signed):
    quantizer = PACT(bits, axis=-1, signed=signed, reach=1.5)
    quantizer(torch.randn(9, 4))
    low, high = quantizer.range
    clip = quantizer.clip.detach().double().numpy()
    x = (2 * torch.randn(60, 4)).requires_grad_()
    upstream = torch.randn(60, 4)
    out = quantizer(x)
    out.backward(upstream)
    x64, up = x.detach().double().numpy(), upstream.double().numpy()
    step = clip / high
    code = np.clip(x64 / step, low, high)
    safe = off_ties(code)
    np.testing.assert_allclose(out.detach().numpy()[safe], (np.rint(code) * step)[safe], atol=1e-5)
    np.testing.assert_array_equal(quantizer.codes(x).numpy()[safe], np.rint(code)[safe])
    above, below = x64 >= clip, x64 < low * step
    np.testing.assert_allclose(x.grad.numpy(), up * ~(above | below), atol=1e-6)
    expected = (up * above + up * below * (low / high)).sum(0)
    np.testing.assert_allclose(quantizer.clip.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EWGS(2, delta=-1), "delta -1; allowed: a finite number, 0 or above"),
        (lambda: EWGS(2, delta=0.1, base="ewgs"), "base 'ewgs'; allowed: another"),
        (lambda: EWGS(2, delta=0.1, base="nosuch"), "nosuch"),
        (lambda: EWGSActivation(2, delta=math.nan), "delta nan; allowed"),
        (lambda: DoReFa(2, levels="half"), "levels 'half'; allowed: 'unit', 'matched'"),
        (lambda: PACT(2, reach=0), "reach 0; allowed: a finite number above 0"),
        (lambda: ClipPenalty(nano_deit(), -1), "strength -1; allowed: a number above 0"),
    ],
)
def test_options_that_are_not_allowed_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("qkr", [False, True])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [("lsqplus", "lsqplus"), ("ewgs", "lsq_ewgs"), ("dorefa", "pact")],
)
def test_model_trains_is_tracked_and_goes_on_from_saved_weights(weights, activations, qkr):
    settings = {"weight_quantizer": weights, "activation_quantizer": activations, "qkr": qkr}
    images = torch.randn(4, 3, 32, 32)

    def quantized():
        model = ofq.quantize(nano_deit(), 2, 2, **settings)
        ofq.calibrate(model, images)
        return model.train()

    model = quantized()
    tracker = ofq.OscillationTracker(model)
    cga = ofq.ConfidenceGuidedAnnealing(model, 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        out = model(images)
        out.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        cga.step(optimizer)
        tracker.update()
    assert sum(part.flips for part in tracker.summary()) > 0
    other = quantized()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_penalty_on_clipping_values_is_the_sum_of_their_squares():
    model = ofq.quantize(nano_deit(), 2, 2, activation_quantizer="pact")
    ofq.calibrate(model, torch.randn(4, 3, 32, 32))
    clips = [m.clip.detach().double() for m in model.modules() if isinstance(m, PACT)]
    expected = 0.01 * sum((clip**2).sum().item() for clip in clips)
    assert ClipPenalty(model, 0.01).penalty(0.5).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="no activation of the model is quantized by pact"):
        ClipPenalty(ofq.quantize(nano_deit(), 2, 2), 0.01)


COMPARING = {
    "freezing": {},
    "dampening": {"strength": 1.0},
    "bin_regularization": {},
    "oscillation_inducing": {},
    "cga_ratio": {},
}
"""Techniques that compare weights with levels, or set them to levels."""


@pytest.mark.parametrize("technique", COMPARING)
def test_levels_that_are_no_values_of_weights_are_refused_where_weights_are_compared(technique):
    def made(**settings):
        return make_technique(
            technique, ofq.quantize(nano_deit(), **settings), COMPARING[technique]
        )

    words = rf"{technique} compares .* the levels of 'NAME' \(blocks.0.attn.*lsq and statsq"
    with pytest.raises(UserError, match=words.replace("NAME", "dorefa")):
        made(weight_quantizer="dorefa")
    with pytest.raises(UserError, match=words.replace("NAME", "ewgs")):
        made(weight_quantizer="ewgs", options={"base": "dorefa"})
    made(weight_quantizer="ewgs", options={"base": "statsq"})


@pytest.mark.parametrize("name", [name for name in OWN if name != "dorefa"])
def test_weight_that_equals_a_level_has_its_code(name):
    """With the scale held: a statistical one follows the weights."""
    w = torch.randn(4, 32)
    quantizer = make_weight_quantizer(name, 3, w)
    scale = quantizer.scale(w)
    quantizer.scale = lambda weight: scale
    every = torch.arange(32).remainder(8).sub(4).expand(4, 32)
    assert quantizer.latent_levels
    assert torch.equal(
        quantizer.codes(quantizer.decode(every.float(), scale)), every.to(torch.int8)
    )


@pytest.mark.parametrize("base", BASES)
def test_frozen_weights_under_ewgs_count_in_the_scale_of_its_base(base):
    w, gradient = torch.randn(4, 12), torch.randn(4, 12)
    plain = make_weight_quantizer(base, 3, w)
    scaled = make_weight_quantizer("ewgs", 3, w, {"base": base})
    for quantizer in (plain, scaled):
        for parameter in quantizer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        quantizer.learn_from_held(w, gradient, quantizer.codes(w))
    for own, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert own.grad.abs().min() > 0
        assert torch.equal(own.grad, theirs.grad)


WEIGHTS = [("lsqplus", {}), ("ewgs", {"base": "statsq"}), ("dorefa", {})]
ACTIVATIONS = [LSQPlus, EWGSActivation, PACT]


@pytest.mark.parametrize("of", [*WEIGHTS, *ACTIVATIONS], ids=str)
def test_values_and_gradients_are_those_of_float32_under_autocast_and_when_compiled(of):
    x, upstream = torch.randn(6, 20), torch.randn(6, 20)
    if isinstance(of, tuple):
        quantizer = make_weight_quantizer(of[0], 3, x, of[1])
    else:
        quantizer = of(3, axis=0)
        quantizer(x)

    def passed(call):
        quantizer.zero_grad()
        given = x.clone().requires_grad_()
        out = call(given)
        out.backward(upstream)
        return [out, given.grad, *(p.grad.clone() for p in quantizer.parameters())]

    plain = passed(quantizer)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = passed(quantizer)
    # the graph as it is compiled, without machine code, which takes seconds
    compiled = passed(torch.compile(quantizer, backend="aot_eager"))
    for one, other, last in zip(plain, under_autocast, compiled, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)
        torch.testing.assert_close(one, last, rtol=1e-6, atol=1e-6)


def test_zeros_have_a_finite_gradient_by_dorefa():
    w = torch.zeros(3, 4, requires_grad=True)
    DoReFa(8, levels="unit")(w).sum().backward()
    assert w.grad.abs().max() <= 1.01e5
