"""Training is deterministic, and an interruption anywhere leaves no trace in its result."""

from dataclasses import replace

import pytest
import torch

from ofq.config import ProbeConfig, Workspace
from ofq.training.build import Inputs, build
from ofq.training.optimization import make_optimizer, make_schedule
from ofq.training.trainer import Session

from tests.support.trainings import Trainings, same_weights, without_times

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def train(checkout, tmp_path):
    """Trains a stage of the tiny study with all that it builds on; optionally in pieces."""
    return Trainings(checkout, tmp_path)


@pytest.mark.parametrize("part", ["w2a2-lsq-s0", "cga0.005-s0"])
def test_interrupted_training_ends_bit_identical(train, part):
    whole, weights = train(part)
    # inside an epoch, twice in a row, and at an epoch's end
    pieces, again = train(part, stops=[3, 4, 9] if "cga" in part else [5, 14, 20], folder="pieces")
    assert same_weights(weights, again)
    assert without_times(whole.rows) == without_times(pieces.rows)
    assert without_times(whole.layers) == without_times(pieces.layers)
    assert whole.tables == pieces.tables
    assert all(whole.tables.values())
    assert pieces.began[0] is None
    assert all(done is not None for done in pieces.began[1:])


def test_recording_changes_no_number(train):
    recorded, weights = train("cga0.005-s0", folder="recorded")
    plain, same = train("cga0.005-s0", folder="plain", recording=ProbeConfig())
    assert same_weights(weights, same)
    beside = [
        {key: value for key, value in row.items() if not key.startswith("activation_")}
        for row in without_times(recorded.rows)
    ]
    assert beside == without_times(plain.rows)
    assert recorded.rows[-1]["activation_oscillation_rate"] > 0
    assert not any(plain.tables.values())


def test_resumed_run_records_what_it_began_with(train):
    whole, _ = train("w2a2-lsq-s0")
    pieces, _ = train("w2a2-lsq-s0", stops=[5], folder="pieces", later=ProbeConfig(weights=2))
    assert whole.tables == pieces.tables


def test_equal_seeds_give_equal_weights_and_others_do_not(train):
    _, one = train("fp-s0", folder="one")
    _, again = train("fp-s0", folder="again")
    _, other = train("fp-s1", folder="other")
    assert same_weights(one, again)
    assert not same_weights(one, other)


def test_rows_hold_every_measure_once_per_epoch(train):
    recorder, _ = train("cga0.005-s0")
    assert [row["epoch"] for row in recorder.rows] == [0, 1]
    assert [row["step"] for row in recorder.rows] == [0, 14]
    last = recorder.rows[-1]
    roles = {key for key in last if key.startswith("oscillation_rate/")}
    assert roles == {f"oscillation_rate/{role}" for role in ("qk", "v", "proj", "fc1", "fc2")}
    assert 90 < last["frozen"] < 100
    assert {"top1", "loss", "train_loss", "lr", "flips", "in_boundary_range"} <= set(last)
    assert recorder.rows[0]["train_loss"] is None
    blocks = {(row["layer"], row["role"]) for row in recorder.layers if row["epoch"] == 1}
    assert len(blocks) == 4 * 5


def test_annealing_starts_from_the_weights_that_qat_ended_with(train):
    qat, _ = train("w2a2-statsq-qkr-s0", folder="qat")
    cga, _ = train("cga0.005-s0", folder="cga")
    assert cga.rows[0]["top1"] == qat.rows[-1]["top1"]
    assert cga.rows[0]["loss"] == pytest.approx(qat.rows[-1]["loss"], rel=1e-6)


def test_one_dimensional_parameters_and_embeddings_do_not_decay(checkout):
    from ofq import quantize
    from ofq.config import Training
    from ofq.training.models import build

    model = quantize(build("micro_deit_patch2_8", 10), qkr=True)
    training = Training(epochs=1, batch_size=1, lr=1.0, weight_decay=0.05)
    optimizer = make_optimizer(model, training)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {
        names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]
    }
    assert decayed == {
        name for name, p in model.named_parameters()
        if name.endswith("weight") and p.ndim > 1
    }  # fmt: skip


def test_rate_follows_a_warm_up_then_a_cosine_to_the_floor():
    import math

    from ofq.config import Training

    training = Training(
        epochs=10, batch_size=1, lr=1.0, min_lr=0.1, warmup_epochs=2, warmup_lr=0.01
    )
    model = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(model, training)
    schedule = make_schedule(optimizer, training)
    rates = []
    for epoch in range(10):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * e / 10)) for e in range(2, 10)]
    assert rates == pytest.approx([0.01, 0.01 + 0.99 / 2, *cosine])


def test_cooldown_stays_at_the_floor_after_the_whole_cosine():
    from ofq.config import Training

    def rates(**options):
        training = Training(batch_size=1, lr=1.0, min_lr=0.1, warmup_epochs=1, **options)
        optimizer = make_optimizer(torch.nn.Linear(2, 2), training)
        schedule = make_schedule(optimizer, training)
        found = []
        for epoch in range(training.epochs):
            schedule.step(epoch)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    cooled = rates(epochs=10, cooldown_epochs=3)
    assert cooled[:7] == rates(epochs=7)
    assert cooled[7:] == [0.1] * 3


def test_step_never_waits_for_the_device(checkout, tmp_path):
    """Reading a number off a tensor is what would make a GPU's step wait."""
    runs = Workspace(checkout).grid("tiny").runs().items()
    config = next(run for name, run in runs if "w2a2-statsq-qkr-cga0.005-s0" in name).config
    config = config.from_fresh_weights()  # annealed all the same
    trainer = build(config, Inputs(), Session())
    batches = trainer.data.train_batches(0, config.training.batch_size)
    trainer.train_step(next(batches))
    batch = next(batches)
    with torch.profiler.profile() as profile:
        trainer.train_step(batch)
    counts = {event.key: event.count for event in profile.key_averages()}
    # AdamW on the CPU reads its counts of steps, one per parameter; on a GPU its kernel does
    assert counts["aten::item"] == len(trainer.optimizer.state)
    assert counts["aten::_fused_adamw_"] <= 2
    assert "aten::nonzero" not in counts


@pytest.mark.parametrize(("key", "counted"), [({}, 64), ({"gradient_batch": 16}, 16)])
def test_gradient_factor_counts_the_images_that_the_recipe_says(checkout, tmp_path, key, counted):
    run = next(r for n, r in Workspace(checkout).grid("tiny").runs().items() if "w2a2-lsq" in n)
    training = run.config.training.model_copy(update={"batch_size": 64, **key})
    config = replace(run.config, training=training)
    trainer = build(config, Inputs(), Session(), device_batch=32)
    inputs = trainer.model.blocks[0].mlp.fc1.input_quantizer.quantizer
    assert inputs.batch_ratio == counted / 32
