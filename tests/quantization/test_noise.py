"""Other codes for weights next to a rounding threshold."""

import copy

import numpy as np
import pytest
import timm
import torch

import ofq
from ofq.errors import UserError
from ofq.quantization import low_bit_weights, near_threshold
from ofq.quantization.noise import NOISES, NoiseInjection

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def trained(quantizer="statsq", qkr=True, bits=2):
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", num_classes=5, **SMALL)
    model = ofq.quantize(model, bits, bits, quantizer, qkr)
    ofq.calibrate(model, IMAGES)
    return model.eval()


def quantized(model):
    """What the layers compute with, by layer."""
    return {
        w.layer: model.get_submodule(w.layer).weight_quantizer(w.latent()).detach()
        for w in low_bit_weights(model)
    }


def held(model, layers):
    return {name: model.get_submodule(name).weight_quantizer(None) for name in layers}


def statsq_grid(weight, bits=2):
    """StatsQ's position, lower level and step in float64 NumPy, by its definition."""
    w = weight.double().numpy()
    scale = 2 * np.abs(w).mean(axis=1, keepdims=True)
    n = 2 ** (bits - 1)
    return np.clip(w / scale, -1, 1 - 1e-6) * n - 0.5, scale / n


@pytest.mark.parametrize("qkr", [False, True])
def test_weights_near_a_threshold_take_either_side_and_others_stay(qkr):
    model = trained(qkr=qkr)
    before = quantized(model)
    latents = {w.layer: w.latent().detach() for w in low_bit_weights(model)}
    noise = NoiseInjection(model, 0.1)
    torch.manual_seed(3)
    noise.inject()
    for name, after in held(model, before).items():
        position, step = statsq_grid(latents[name])
        below = np.floor(position)
        distance = np.abs(position - below - 0.5)
        inside = (distance < 0.1 - 1e-4) & (below >= -2) & (below < 1)
        outside = (distance > 0.1 + 1e-4) | (below < -2) | (below >= 1)
        assert np.array_equal(after.numpy()[outside], before[name].numpy()[outside])
        sides = [(below + side + 0.5) * step for side in (0, 1)]
        gaps = [np.abs(after.numpy() - side) / step for side in sides]
        assert (np.minimum(*gaps)[inside] < 1e-4).all()
        if inside.sum() > 100:
            assert 0.35 < (gaps[1] < 1e-4)[inside].mean() < 0.65


@pytest.mark.parametrize("quantizer", ["statsq", "lsq"])
def test_control_moves_as_many_of_the_others_by_one_level(quantizer):
    model = trained(quantizer)
    weights = list(low_bit_weights(model))
    before, steps = quantized(model), {w.layer: w.quantizer.step_size(w.latent()) for w in weights}
    inside = {
        w.layer: near_threshold(w.quantizer.position(w.latent()), 0.1, -2, 1) for w in weights
    }
    torch.manual_seed(3)
    wanted = NoiseInjection(copy.deepcopy(model), 0.1).inject()
    found = NoiseInjection(model, 0.1, NOISES["others"]()).inject()
    assert found == pytest.approx(wanted, rel=0.05)
    for name, after in held(model, before).items():
        moves = (after - before[name]) / steps[name]
        assert (moves[inside[name]] == 0).all()
        assert set(moves.round().unique().tolist()) == {-1, 0, 1}
        assert (moves - moves.round()).abs().max() < 1e-4


def test_model_without_a_draw_is_the_trained_one_and_draws_do_not_add_up():
    model = trained()
    noisy = copy.deepcopy(model)
    noise = NoiseInjection(noisy, 0.2)
    assert torch.equal(noisy(IMAGES), model(IMAGES))
    shares = [noise.inject(torch.Generator().manual_seed(seed)) for seed in (0, 1, 0)]
    assert shares[0] == shares[2] != shares[1]
    assert abs(shares[0] - shares[1]) < 0.2 * shares[0]
    assert not torch.equal(noisy(IMAGES), model(IMAGES))


@pytest.mark.parametrize("width", [0, 0.5])
def test_band_that_cannot_be_is_refused(width):
    with pytest.raises(UserError, match=r"allowed: above 0, below 0\.5"):
        NoiseInjection(trained(), width)


def test_model_without_low_bit_weights_is_refused():
    with pytest.raises(UserError, match="no low-bit weights"):
        NoiseInjection(torch.nn.Linear(2, 2))
