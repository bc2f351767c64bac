"""Probes against NumPy in float64, and their bounds."""

import json

import numpy as np
import pytest
import torch
from timm.models import VisionTransformer

import ofq
from ofq.config import ProbeConfig
from ofq.quantization import low_bit_weights
from ofq.training.probes import Probes, joint, probes, signs
from ofq.training.probes.histograms import bins_per_step
from ofq.training.probes.probe import entries, spread

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = ProbeConfig(weights=8, sample=20, histograms=3)
BITS = 2
N = 2 ** (BITS - 1)


def tiny(qkr=False, quantizer="statsq"):
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=3
    )
    model = ofq.quantize(model, BITS, BITS, quantizer, qkr)
    ofq.calibrate(model, torch.randn(4, 3, 8, 8))
    return model


def steps(model, recorded, count, look=lambda step: None):
    """Make steps under a recording; ``look`` is called before and after each of them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, count + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        look(step)
        recorded.before_step(step)
        optimizer.step()
        recorded.after_step(step)


def positions(weight):
    """StatsQ's positions in float64, by its definition."""
    weight = weight.detach().double().numpy()
    scale = 2 * np.abs(weight).mean(1, keepdims=True)
    return np.clip(weight / scale, -1, 1 - 1e-6) * N - 0.5


def codes(weight):
    return np.round(positions(weight))


def test_sign_changes_are_those_counted_by_hand():
    model = tiny()
    recorded = Probes(model, ALL, epochs=1, steps_per_epoch=9)
    weights = list(low_bit_weights(model))
    gradients, places = [], []

    def look(step):
        gradients.append([w.latent().grad.double().numpy().copy() for w in weights])
        places.append([positions(w.latent()) for w in weights])

    steps(model, recorded, 9, look)
    expected = {}
    for index, weight in enumerate(weights):
        for role, rows in weight.roles.items():
            chosen = entries(rows, 12 if role != "fc2" else 48, ALL.sample).numpy()
            sign = np.sign([g[index].flat[chosen] for g in gradients])
            at = np.array([p[index].flat[chosen] for p in places])
            edges = np.arange(-N, N - 1) + 0.5
            distance = np.abs(at[..., None] - edges).min(-1)
            for width in (*signs.BOUNDARY_RANGES, None):
                inside = distance[1:] <= (np.inf if width is None else width)
                product = sign[1:] * sign[:-1]
                found = expected.setdefault((role, width), np.zeros(2, int))
                found += [(inside & (product != 0)).sum(), (inside & (product < 0)).sum()]
    rows = recorded.take(1, 9)["sign_changes"]
    assert {(r["role"], r["boundary_range"]): (r["pairs"], r["changes"]) for r in rows} == {
        key: tuple(counts) for key, counts in expected.items()
    }
    assert sum(r["pairs"] for r in rows if r["boundary_range"] == 0.1) > 20
    again = recorded.take(1, 9)["sign_changes"]
    assert all(r["pairs"] == r["changes"] == 0 for r in again)


@pytest.mark.parametrize("qkr", [False, True])
def test_joint_flips_are_those_counted_pair_by_pair(qkr):
    model = tiny(qkr)
    recorded = Probes(model, ALL, epochs=1, steps_per_epoch=12)
    layer = model.blocks[1].attn.scores
    grids = []

    def pair():
        if qkr:
            return [layer.merged.q_weight, layer.merged.k_weight]
        return layer.qkv.weight.chunk(3)[:2]

    steps(model, recorded, 12, lambda step: grids.append([codes(w) for w in pair()]))
    grids.append([codes(w) for w in pair()])
    flips = np.diff(np.array(grids), axis=0) != 0  # steps, query or key, channel, entry
    per_channel = flips.sum(-1)
    query, key = per_channel[:, 0], per_channel[:, 1]
    row = recorded.take(1, 12)["joint_flips"][1]
    assert row["layer"].startswith("blocks.1")
    assert (row["steps"], row["weights"]) == (12, 144)
    assert (row["flips_q"], row["flips_k"]) == (query.sum(), key.sum())
    assert row["flips_q"] > 5
    for other, suffix in ((key, ""), (np.roll(key, 6, axis=1), "_strangers")):
        joint_flips = sum(int(query[t, j]) * int(other[t, j]) for t in range(12) for j in range(12))
        expected = (query.sum(0) * other.sum(0)).sum() / 12
        assert row[f"joint{suffix}"] == joint_flips
        assert row[f"expected{suffix}"] == pytest.approx(expected)


@pytest.mark.parametrize(("together", "ratio"), [(False, 1.0), (True, 5.0)])
def test_co_flip_ratio_of_known_truth(together, ratio):
    """Rows of W_q and W_k flip at a fifth of the steps: by themselves, or always both at once."""
    model = tiny()
    weights = list(low_bit_weights(model))
    part = joint.JointFlips(weights, 128)
    generator = np.random.default_rng(0)
    count = 3000
    latent = weights[0].latent().detach()
    position = torch.zeros_like(latent)
    part.see(0, latent, position, -1)
    part.seen(-1)
    moves = generator.random((count, 2, 12)) < 0.2
    if together:
        moves[:, 1] = moves[:, 0]
    for step, both in enumerate(moves):
        rows = torch.from_numpy(both.flatten())
        position[:24][rows] = 1 - position[:24][rows]
        part.see(0, latent, position, step)
        part.seen(step)
    row = part.take(1, count)[0]
    assert row["joint"] / row["expected"] == pytest.approx(ratio, rel=0.05)
    assert row["joint_strangers"] / row["expected_strangers"] == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("quantizer", ["statsq", "lsq"])
def test_paths_are_the_weights_at_each_step(quantizer):
    model = tiny(quantizer=quantizer)
    recorded = Probes(model, ALL, epochs=1, steps_per_epoch=5)
    seen = []
    weights = {w.layer: w for w in low_bit_weights(model)}

    def look(step):
        found = {
            name: [w.latent(), w.quantizer(w.latent()), w.quantizer.scale(w.latent())]
            for name, w in weights.items()
        }
        seen.append({name: [t.detach().clone() for t in ts] for name, ts in found.items()})

    steps(model, recorded, 5, look)
    look(6)
    rows = recorded.take(1, 5)["trajectories"]
    assert [(r["step"], r["weight"]) for r in rows] == [
        (step, weight) for step in range(1, 6) for weight in range(8)
    ]
    assert {r["role"] for r in rows} == {"q", "k", "v", "proj", "fc1", "fc2"}
    for row in rows:
        latent, quantized, scale = seen[row["step"]][row["layer"]]
        (place,) = (latent == row["latent"]).nonzero().tolist()
        assert quantized[tuple(place)] == row["quantized"]
        assert scale[place[0], 0] == row["scale"]
        assert row["code"] == round(row["position"])


def test_followed_weights_begin_nearest_to_a_threshold():
    model = tiny()
    recorded = Probes(model, ALL, epochs=1, steps_per_epoch=1)
    steps(model, recorded, 0)
    fc1 = next(w for w in low_bit_weights(model) if w.layer == "blocks.1.mlp.fc1")
    distance = np.abs(positions(fc1.latent())[..., None] - np.array([-1.5, -0.5, 0.5])).min(-1)
    index = [w.layer for w in low_bit_weights(model)].index("blocks.1.mlp.fc1")
    chosen = recorded.parts[0].get_buffer(f"entries_{index}").numpy()
    np.testing.assert_allclose(distance.flat[chosen], np.sort(distance.flat)[: len(chosen)])


@pytest.mark.parametrize("quantizer", ["statsq", "lsq"])
def test_histogram_counts_every_weight_once_where_it_lies(quantizer):
    model = tiny(quantizer=quantizer)
    recorded = Probes(model, ALL, epochs=5, steps_per_epoch=3)
    per_step = bins_per_step(BITS)
    edges = -N - 0.5 + np.arange(2**BITS * per_step + 1) / per_step
    rows = recorded.take(0, 0)["histograms"]
    assert {row["role"] for row in rows} == {"q", "k", "v", "proj", "fc1", "fc2"}
    for row in rows:
        found = np.concatenate(
            [
                w.quantizer.position(w.latent())[w.roles[row["role"]]].double().numpy().flatten()
                for w in low_bit_weights(model)
                if row["role"] in w.roles
            ]
        )
        np.testing.assert_array_equal(row["counts"], np.histogram(found, edges)[0])
    taken = [epoch for epoch in range(6) if recorded.take(epoch, 3 * epoch)["histograms"]]
    assert taken == [0, 3, 5]


def test_long_stages_record_their_epochs_last_steps_only(monkeypatch):
    monkeypatch.setattr(probes, "STEPS", 8)
    model = tiny()
    recorded = Probes(model, ALL, epochs=2, steps_per_epoch=6)
    looked = []
    seen = recorded.parts[1].seen
    recorded.parts[1].seen = lambda slot: (looked.append(slot), seen(slot))
    steps(model, recorded, 6)
    assert looked == [-1, 0, 1, 2, 3]
    first = recorded.take(1, 6)
    assert {row["step"] for row in first["trajectories"]} == {3, 4, 5, 6}
    assert {row["steps"] for row in first["joint_flips"]} == {4}
    anywhere = [r for r in first["sign_changes"] if r["boundary_range"] is None]
    # 4 steps make 3 pairs: across a gap nothing is compared
    assert max(row["pairs"] for row in anywhere) == 2 * ALL.sample * 3


def test_rows_do_not_grow_with_the_training(monkeypatch):
    monkeypatch.setattr(probes, "STEPS", 32)
    sizes = {}
    for steps_per_epoch in (8, 2000):
        recorded = Probes(tiny(), ALL, epochs=4, steps_per_epoch=steps_per_epoch)
        tables = [recorded.take(e, e * steps_per_epoch) for e in range(5)]
        sizes[steps_per_epoch] = {
            name: sum(len(found.get(name, [])) for found in tables) for name in tables[1]
        }
    assert sizes[8] == sizes[2000]
    assert sizes[8] == {
        "trajectories": 32 * 8, "sign_changes": 4 * 6 * 6, "joint_flips": 4 * 2,
        "histograms": 3 * 6,
    }  # fmt: skip


def test_nothing_to_record_in_full_precision():
    recorded = Probes(torch.nn.Linear(3, 3), ALL, epochs=2, steps_per_epoch=2)
    recorded.before_step(1)
    recorded.after_step(1)
    assert not any(recorded.take(1, 2).values())
    assert not recorded.state_dict()


def test_every_row_can_be_written_as_json():
    model = tiny(qkr=True)
    recorded = Probes(model, ALL, epochs=2, steps_per_epoch=3)
    steps(model, recorded, 3)
    for rows in recorded.take(1, 3).values():
        assert json.loads(json.dumps(rows)) == rows


def test_samples_are_fixed_distinct_and_inside_their_rows():
    one, again = (entries(slice(4, 8), 10, 12) for _ in range(2))
    assert torch.equal(one, again)
    assert len(set(one.tolist())) == 12
    assert one.min() >= 40
    assert one.max() < 80
    assert entries(slice(0, 1), 4, 12).tolist() == [0, 1, 2, 3]
    assert spread(12, 5).tolist() == [0, 2, 4, 7, 9]
    assert spread(3, 5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("settings", [{"weights": 33}, {"sample": -1}, {"histogram": 2}])
def test_recordings_beyond_their_bounds_are_refused(settings):
    with pytest.raises(ValueError, match=r"less than or equal|greater than or equal|extra"):
        ProbeConfig(**settings)
