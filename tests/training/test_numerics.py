"""Numbers that training can't go on with are found, explained, and never saved."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ofq.config import Workspace
from ofq.training.build import Inputs, build
from ofq.training.checkpoint import CheckpointStore
from ofq.training.checks import BadNumbers
from ofq.training.pace import Pace
from ofq.training.trainer import Session
from ofq.training.weights import save_weights


class Silent:
    def __getattr__(self, name):
        return lambda *arguments: None


@pytest.fixture
def recipe(checkout):
    """Changes the tiny recipe."""
    path = checkout / "config" / "recipes" / "small.yaml"

    def change(old, new):
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.fixture
def trainer(checkout, tmp_path):
    """Makes the trainer of a run of the tiny study; its parent is trained for no step."""

    def make(part, parent=None, save_every=1e9):
        runs = Workspace(checkout).grid("tiny").runs()
        run = next(run for name, run in runs.items() if part in name)
        if run.parent is not None and parent is None:
            parent = tmp_path / "parent.safetensors"
            save_weights(make(run.parent.id).model, parent)
        store = CheckpointStore(tmp_path / f"checkpoint-{part.replace('/', '-')}")
        session = Session(Silent(), store, pace=Pace(save_every))
        return build(run.config, Inputs(parent, parent), session)

    return make


def all_finite(state):
    return all(torch.isfinite(t).all() for t in state["model"].values() if t.is_floating_point())


def test_divergence_names_step_and_layer_as_found_by_looking_at_every_step(recipe, trainer):
    recipe(
        "fp: {epochs: 2, batch_size: 64, lr: 2.0e-3}", "fp: {epochs: 2, batch_size: 64, lr: 1e25}"
    )
    seen = []
    watched = trainer("fp-s0")
    for name, module in watched.model.named_modules():
        if name:
            module.register_forward_hook(
                lambda _, __, out, name=name: (
                    seen.append((watched.step + 1, name)) if not torch.isfinite(out).all() else None
                )
            )
    for batch in watched._batches(1):
        watched.train_step(batch)
    with pytest.raises(BadNumbers) as failure:
        trainer("fp-s0").run()
    assert (failure.value.step, failure.value.layer) == seen[0]
    assert "its parameters are finite" in failure.value.cause


def test_bad_image_is_found_in_the_step_that_meets_it(trainer):
    made = trainer("fp-s0")
    batches = made.data.train_batches(0, 64)
    next(batches)
    third = list(batches)[1][0]
    place = int((made.data.train_inputs == third[5]).flatten(1).all(1).nonzero()[0])
    made.data.train_inputs[place, 0, 2, 2] = float("inf")
    with pytest.raises(BadNumbers) as failure:
        made.run()
    assert failure.value.step == 3
    assert failure.value.layer == "patch_embed.proj"
    assert "holds" in failure.value.cause


def test_bad_gradient_is_found_in_the_parameter_that_it_spoilt(trainer):
    made = trainer("fp-s0")
    weight = made.model.blocks[2].mlp.fc1.weight
    weight.register_hook(lambda grad: grad * float("nan") if made.step == 4 else grad)
    with pytest.raises(BadNumbers) as failure:
        made.run()
    assert (failure.value.step, failure.value.layer) == (6, "blocks.2.mlp.fc1")
    assert failure.value.cause == "weight holds nan"


def test_weights_are_never_saved_once_they_are_bad(trainer):
    """Even while the loss is still finite, as in the step whose gradient was bad."""
    made = trainer("fp-s0", save_every=0)
    weight = made.model.blocks[2].mlp.fc1.weight
    weight.register_hook(lambda grad: grad * float("nan") if made.step == 4 else grad)
    with pytest.raises(BadNumbers) as failure:
        made.run()
    assert failure.value.step == 5
    last = made.checkpoints.load()
    assert last["step"] == 4
    assert all_finite(last)


def test_checkpoint_before_the_bad_loss_is_kept(recipe, trainer):
    recipe("lr: 1.0e-3, min_lr: 1.0e-4", "lr: 1e25, min_lr: 1.0e-4")
    made = trainer("w2a2-lsq-s0")
    with pytest.raises(BadNumbers):
        made.run()
    last = made.checkpoints.load()
    assert last["step"] == 0
    assert all_finite(last)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_zero_variance_scale_stops_the_run_before_its_first_step(trainer, tmp_path, value):
    first = trainer("fp-s0")
    path = tmp_path / "flat.safetensors"
    save_weights(first.model, path)
    weights = load_file(path)
    weights["blocks.1.mlp.fc2.weight"][7] = value
    save_file(weights, path)
    with pytest.raises(BadNumbers, match="zero-variance scale: all weights of row 7") as failure:
        trainer("w2a2-lsq-s0", parent=path).run()
    assert failure.value.layer == "blocks.1.mlp.fc2"
    assert failure.value.step == 0
