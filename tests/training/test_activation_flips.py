"""Flips of activations' codes: against NumPy in float64, and what reading them leaves alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.models import SwinTransformer, VisionTransformer

import ofq
from ofq.config import ProbeConfig, Workspace
from ofq.errors import UserError
from ofq.quantization import CodeHistory
from ofq.quantization.activations import activation_quantizers
from ofq.quantization.layers import quantized_activations
from ofq.training.build import Inputs, build
from ofq.training.distributed import SingleProcess
from ofq.training.models import build as build_model
from ofq.training.probes import Probes, activations, measures, probes
from ofq.training.probes.activations import ActivationFlips, evaluating, sample
from ofq.training.trainer import Session
from ofq.training.weights import save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

IN_BLOCKS = {"attention input", "v", "probabilities", "proj input", "fc1 input", "fc2 input"}
OUTER = {"first input", "last input"}


def tiny(qkr=False, **options):
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=3,
        drop_path_rate=0.2,
    )  # fmt: skip
    model = ofq.quantize(model, 2, 2, "statsq", qkr, **options)
    ofq.calibrate(model, torch.randn(4, 3, 8, 8))
    return model


def flips_of(model, images=None, precision="fp32"):
    images = torch.randn(4, 3, 8, 8) if images is None else images
    return ActivationFlips(model, list(quantized_activations(model)), images, precision)


def train(model, count, before=lambda step: None, after=lambda step: None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, count + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        before(step)
        optimizer.step()
        after(step)


def lsq_codes(quantizer, x):
    """LSQ's codes in float64, by its definition."""
    shape = [n if d in {a % x.ndim for a in quantizer.axis} else 1 for d, n in enumerate(x.shape)]
    scale = np.maximum(quantizer.scale.detach().double().numpy(), 1e-5).reshape(shape)
    low, high = (-(2**7), 2**7 - 1) if quantizer.bits == 8 else (-2, 1)
    if not quantizer.signed:
        low, high = 0, 2**quantizer.bits - 1
    return np.round(np.clip(x.double().numpy() / scale, low, high))


@pytest.mark.parametrize(
    ("qkr", "of_keys"), [(False, {"q", "k"}), (True, {"qk"}), ("lowrank", {"q", "k"})]
)
def test_codes_are_those_of_the_quantized_activations(qkr, of_keys):
    model, images = tiny(qkr), torch.randn(4, 3, 8, 8)
    inputs = {}
    for activation in quantized_activations(model):
        activation.quantizer.reader = lambda x, to=inputs, name=activation.name: to.setdefault(
            name, x.detach().clone()
        )
    with torch.no_grad(), evaluating(list(model.modules())):
        model(images)
    for activation in quantized_activations(model):
        del activation.quantizer.reader
    flips = flips_of(model, images)
    roles = {a.role for a in flips.activations}
    assert roles == IN_BLOCKS | OUTER | of_keys
    found = flips.history.previous.flatten().split([len(e) for e in flips.entries.values()])
    for activation, codes in zip(flips.activations, found, strict=True):
        x = inputs[activation.name]
        expected = lsq_codes(activation.quantizer, x)
        # a fixed sample, so that it is the same positions at each step
        chosen = sample(x.numel(), activations.POSITIONS).numpy()
        assert (codes.numpy() == expected.flat[chosen]).mean() > 0.999
        # what the layer computes with is the code's multiple
        quantized = activation.quantizer(x).detach().double().numpy()
        scale = activation.quantizer.effective_scale(x).detach().double().numpy()
        np.testing.assert_allclose(
            quantized, activation.quantizer.codes(x).numpy() * scale, rtol=1e-6
        )


def test_sampled_positions_are_distinct_and_everywhere():
    for total, count in ((5, 256), (1000, 256), (10**7, 256)):
        chosen = sample(total, count)
        assert torch.equal(chosen, sample(total, count))
        assert len(set(chosen.tolist())) == min(total, count)
        assert 0 <= chosen.min() <= total / len(chosen)
        assert total - total / len(chosen) - 1 <= chosen.max() < total
    assert len(set((sample(256 * 64, 256) % 64).tolist())) > 50  # no period is met


def test_flips_and_oscillations_are_those_of_a_sequence_made_by_hand():
    model = tiny()
    flips = flips_of(model)
    flips.activations = flips.activations[:2]
    first, second = (activation.name for activation in flips.activations)
    flips.entries = {first: torch.arange(2), second: torch.arange(1)}
    sequence = torch.tensor(
        # two positions of the first activation, one of the second
        [[0, 0, 3], [1, 0, 3], [0, 0, 3], [1, 1, 2], [1, 2, 2], [0, 2, 2]],
        dtype=torch.int16,
    )
    flips.history = CodeHistory(sequence[0].unsqueeze(1))
    read = iter(sequence[1:])

    def codes():
        now = next(read)
        return {first: now[:2], second: now[2:]}

    flips._read = codes
    for slot in range(5):
        flips.seen(slot)
    one, other = flips.take(1, 5)
    # the first position flips up, down, up, down: three oscillations; the second up twice: none
    assert (one["steps"], one["positions"], other["positions"]) == (5, 2, 1)
    assert one["flips"] == pytest.approx(1000 * 6 / 2 / 5)
    assert other["flips"] == pytest.approx(1000 * 1 / 1 / 5)
    assert (one["oscillation_rate"], other["oscillation_rate"]) == (50.0, 0.0)
    expected = 0.0
    for oscillated in (0, 1, 1, 0, 1):
        expected = 0.01 * oscillated + 0.99 * expected
    assert float(flips.history.frequency[0]) == pytest.approx(expected)
    assert flips.take(1, 5)[0]["flips"] == 0


def test_rows_are_what_a_second_look_at_the_codes_counts():
    model = tiny()
    images = torch.randn(3, 3, 8, 8)
    recorded = Probes(model, ProbeConfig(activations=3), 1, 12, images=images)
    looked = []

    def look(step):
        looked.append(flips_of(model, images).history.previous.flatten())

    def before(step):
        if step == 1:
            look(0)
        recorded.before_step(step)

    def after(step):
        recorded.after_step(step)
        look(step)

    train(model, 12, before, after)
    rows = recorded.take(1, 12)["activations"]
    changed = (torch.stack(looked).diff(dim=0) != 0).sum(0)
    parts = changed.split([row["positions"] for row in rows])
    for row, part in zip(rows, parts, strict=True):
        assert row["flips"] == pytest.approx(1000 * int(part.sum()) / len(part) / 12)
    assert max(row["flips"] for row in rows) > 10
    assert json.loads(json.dumps(rows)) == rows
    inner = [row for row in rows if row["role"] not in OUTER]
    weights = np.array([row["positions"] for row in inner])
    found = measures(rows)
    for name in ("flips", "oscillation_rate"):
        mean = np.average([row[name] for row in inner], weights=weights)
        assert found[f"activation_{name}"] == pytest.approx(mean)
    assert "activation_oscillation_rate/fc2 input" in found


def test_reading_leaves_model_modes_gradients_and_random_numbers_alone():
    model = tiny().train()
    model.blocks[1].eval()
    images = torch.randn(4, 3, 8, 8)
    model(images).sum().backward()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    numbers = torch.get_rng_state()
    flips = flips_of(model, images)
    flips.seen(0)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(model.get_parameter(n).grad, g) for n, g in gradients.items())
    assert all(a.quantizer.reader is None for a in flips.activations)
    assert all("reader" not in vars(a.quantizer) for a in flips.activations)


def test_long_stages_follow_their_epochs_last_steps_only(monkeypatch):
    monkeypatch.setattr(probes, "STEPS", 8)
    model = tiny()
    recorded = Probes(model, ProbeConfig(activations=2), 2, 6, images=torch.randn(2, 3, 8, 8))
    passes = []
    model.register_forward_pre_hook(
        lambda module, args: None if torch.is_grad_enabled() else passes.append(args)
    )
    train(model, 6, recorded.before_step, recorded.after_step)
    assert len(passes) == 1 + 4
    assert {row["steps"] for row in recorded.take(1, 6)["activations"]} == {4}


class Ceiling(ofq.ActivationQuantizer):
    """A user's quantizer, without codes."""

    def __init__(self, bits, axis=None, signed=True):
        super().__init__(bits, axis, signed)
        self.step = torch.nn.Parameter(torch.empty(0))

    def initialize(self, x):
        self.step.data = x.detach().abs().max().reshape(1) / self.range[1]

    def forward(self, x):
        self.prepare(x)
        code = (x / self.step).clamp(*self.range)
        return (code + (code.ceil() - code).detach()) * self.step


class Told(Ceiling):
    """The same with codes, which it gets from its own forward, of another type than LSQ's."""

    def codes(self, x):
        return (self(x) / self.step).round().long()


@pytest.fixture
def own_quantizers():
    for name, kind in (("ceiling", Ceiling), ("told", Told)):
        ofq.register_activation_quantizer(name)(kind)
    yield
    for name in ("ceiling", "told"):
        del activation_quantizers[name]


def test_a_users_quantizer_is_followed_by_its_codes(own_quantizers):
    model = tiny(activation_quantizer="told")
    flips = flips_of(model)
    assert flips.left_out == []
    inner = [a for a in flips.activations if isinstance(a.quantizer, Told)]
    assert {a.role for a in inner} >= IN_BLOCKS
    train(model, 6, after=flips.seen)
    assert sum(row["flips"] for row in flips.take(1, 6) if row["role"] in IN_BLOCKS) > 0


def test_a_quantizer_without_codes_is_left_out_by_name(own_quantizers):
    model = tiny(activation_quantizer="ceiling")
    recorded = Probes(model, ProbeConfig(activations=2), 1, 3, images=torch.randn(2, 3, 8, 8))
    assert recorded.left_out == ["Ceiling"]
    train(model, 3, recorded.before_step, recorded.after_step)
    rows = recorded.take(1, 3)["activations"]
    assert {row["role"] for row in rows} == OUTER  # those are LSQ's in any case


def test_codes_of_another_shape_are_refused(own_quantizers, monkeypatch):
    monkeypatch.setattr(Told, "codes", lambda self, x: torch.zeros(3))
    with pytest.raises(UserError, match=r"Told\.codes returns shape \(3,\) for "):
        flips_of(tiny(activation_quantizer="told"))


def test_swins_windows_and_reductions_are_followed():
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2, 1), num_heads=(1, 2),
        num_classes=3,
    )  # fmt: skip
    model = ofq.quantize(model, 2, 2)
    ofq.calibrate(model, torch.randn(2, 3, 16, 16))
    roles = {a.role for a in flips_of(model, torch.randn(2, 3, 16, 16)).activations}
    assert roles == IN_BLOCKS | OUTER | {"q", "k", "reduction input"}


def test_without_quantized_activations_nothing_is_recorded():
    for model in (torch.nn.Linear(3, 3), ofq.quantize(
        VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=1, num_heads=2),
        2, 32, first_last_bits=(8, 32),
    )):  # fmt: skip
        recorded = Probes(model, ProbeConfig(activations=2), 2, 2, images=torch.zeros(2, 3, 8, 8))
        recorded.before_step(1)
        recorded.after_step(1)
        assert "activations" not in recorded.take(1, 2)
        assert not recorded.state_dict()


def test_all_ranks_follow_the_same_positions_of_the_same_images(checkout, tmp_path):
    runs = Workspace(checkout).grid("tiny").runs()
    run = next(run for name, run in runs.items() if "w2a2-lsq-s0" in name)
    parent = tmp_path / "fp.safetensors"
    save_weights(build_model("micro_deit_patch2_8", classes=10), parent)
    training = run.config.training.model_copy(update={"probes": ProbeConfig(activations=3)})
    config = replace(run.config, training=training)
    states = []
    for rank in range(2):
        group = SingleProcess(torch.device("cpu"))
        group.rank, group.count = rank, 2
        trainer = build(config, Inputs(parent, parent), Session(group=group))
        states.append(trainer.probes.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert len(states[0]["parts.0.images"]) == 3
