import numpy as np
import pytest
import torch

from ofq.errors import UserError
from ofq.training.data.source import load
from ofq.training.models import build

MODEL = "micro_deit_patch2_8"


def test_digits_split_is_stratified_disjoint_and_complete():
    data = load("digits", MODEL, seed=3)
    assert (len(data.train_inputs), len(data.test_inputs)) == (897, 900)
    everything = torch.cat([data.train_inputs, data.test_inputs])
    assert len(everything) == 1797
    assert everything.mean().abs() < 1e-3
    assert everything.std().item() == pytest.approx(1, abs=1e-3)
    train, test = (np.bincount(t) for t in (data.train_targets, data.test_targets))
    assert np.abs(train - test).max() <= 2


def test_each_seed_has_a_split_of_its_own_and_the_same_one_each_time():
    one, again, other = (load("digits", MODEL, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.test_inputs, again.test_inputs)
    assert not torch.equal(one.test_targets, other.test_targets)


def test_order_is_a_function_of_seed_and_epoch_and_can_start_midway():
    data = load("digits", MODEL, seed=0)
    first, again, later = (
        [b.labels.tolist() for b in data.train_batches(epoch, 64)] for epoch in (0, 0, 1)
    )
    assert first == again != later
    rest = [b.labels.tolist() for b in data.train_batches(0, 64, first=5)]
    assert rest == first[5:]
    assert len(first) == data.steps_per_epoch(64) == 14


def test_batch_larger_than_the_training_set_is_explained():
    with pytest.raises(UserError, match=r"batch_size 1000 .* 897"):
        load("digits", MODEL, 0).steps_per_epoch(1000)


def test_missing_data_set_is_explained(monkeypatch):
    def missing():
        raise FileNotFoundError("digits.csv.gz")

    monkeypatch.setattr("sklearn.datasets.load_digits", missing)
    with pytest.raises(UserError, match=r"digits data set is missing.*reinstall"):
        load("digits", MODEL, 0)
    with pytest.raises(UserError, match="unknown dataset 'cifar'; allowed: digits"):
        load("cifar", MODEL, 0)


def test_packaged_data_sets_have_a_registered_source():
    from ofq.config.datasets import PACKAGED, SOURCES
    from ofq.training.data.source import _SOURCES

    assert {"images", *_SOURCES} == set(SOURCES)
    assert {about.source for about in PACKAGED.values()} <= set(SOURCES)


def test_unknown_model_is_explained(name):
    with pytest.raises(UserError, match=f"unknown model '{name}'"):
        build(name, 10)


def test_models_with_a_name_like_an_unknown_one_are_named():
    with pytest.raises(UserError, match=r"timm has: .*vit_tiny_patch16_224"):
        build("vit_tiny_patch16_225", 10)


def dropped_paths(model):
    return [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath" and m.drop_prob]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", MODEL])
def test_stochastic_depth_is_the_recipes_whatever_timm_would_take(name):
    assert not dropped_paths(build(name, 10))
    assert max(dropped_paths(build(name, 10, drop_path=0.2))) == pytest.approx(0.2)


def test_toy_regression_has_no_path_to_drop():
    with pytest.raises(UserError, match="no path to drop"):
        build("toy_regression_4", 0, drop_path=0.1)
