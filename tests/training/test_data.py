import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ofq.config import Workspace
from ofq.config.datasets import Dataset
from ofq.errors import UserError
from ofq.training.data.source import load, read_idx
from ofq.training.models import build

from tests.support.idx import write_idx
from tests.support.required import without

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

    assert {about.source for about in PACKAGED.values()} <= set(SOURCES)


@pytest.mark.parametrize("name", ["deit_tinny", "toy_regression_x", "toy_regression_0"])
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


@pytest.fixture
def idx(tmp_path):
    """A small data set of gzipped IDX files, and what is in it."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("t10k", 6)):
        images = random.integers(0, 256, (count, 5, 4))
        labels = np.arange(count) % 3
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", labels)
        arrays[split] = images, labels
    return tmp_path, arrays


FASHION = Dataset(title="Small", source="idx", mean=(0.25,), std=(0.5,), classes=3)


def test_idx_files_are_normalized_images_and_labels(idx):
    folder, arrays = idx
    data = load("small", MODEL, 0, FASHION, folder)
    images, labels = arrays["train"]
    expected = (images / 255 - 0.25) / 0.5
    np.testing.assert_allclose(data.train_inputs[:, 0].numpy(), expected, atol=1e-6)
    assert data.train_targets.tolist() == labels.tolist()
    assert data.test_inputs.shape == (6, 1, 5, 4)
    assert data.classes == 3


def test_idx_files_need_no_gzip(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    write_idx(tmp_path / "some", array, packed=False)
    assert np.array_equal(read_idx(tmp_path / "some"), array)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:40]), "not readable"),
        (lambda p: p.write_bytes(b"<html>"), "not readable"),
        (lambda p: p.write_bytes(gzip.compress(b"<html>")), "no IDX file"),
        (lambda p: p.write_bytes(gzip.compress(b"")), "no IDX file"),
        (lambda p: p.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0")), "damaged"),
        (lambda p: p.write_bytes(gzip.compress(b"\0\0\x08\xff" + b"\xff" * 2000)), "damaged"),
        (lambda p: write_idx(p.with_suffix(""), np.zeros((11, 5, 4))), "11 images, but 12 labels"),
    ],
)
def test_idx_file_at_fault_is_named(idx, damage, words):
    folder, _ = idx
    damage(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=words) as error:
        load("small", MODEL, 0, FASHION, folder)
    assert str(folder) in str(error.value)


def test_held_out_images_take_the_test_set_s_place_and_are_never_trained_on(idx):
    folder, arrays = idx
    whole = load("small", MODEL, 0, FASHION, folder)
    about = FASHION.model_copy(update={"skip_images": 2, "train_images": 4, "held_out": 5})
    data = load("small", MODEL, 0, about, folder)
    assert torch.equal(data.train_inputs, whole.train_inputs[2:6])
    assert torch.equal(data.test_inputs, whole.train_inputs[7:])
    assert data.train_targets.tolist() == arrays["train"][1][2:6].tolist()
    assert data.test_targets.tolist() == arrays["train"][1][7:].tolist()
    rest = load("small", MODEL, 0, about.model_copy(update={"train_images": None}), folder)
    assert torch.equal(rest.train_inputs, whole.train_inputs[2:7])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train_images": 8, "held_out": 5}, "train_images 8, held_out 5: it has 12 training"),
        ({"skip_images": 12}, "skip_images 12: it has 12 training images"),
        ({"test_images": 7}, "test_images 7: it has 6 test images"),
    ],
)
def test_more_images_than_there_are_is_refused(idx, keys, words):
    with pytest.raises(UserError, match=f"data set 'small': {words}"):
        load("small", MODEL, 0, FASHION.model_copy(update=keys), idx[0])


def test_part_for_tuning_shares_no_image_with_what_studies_train_and_evaluate_on():
    workspace = Workspace(Path(__file__).parents[2])
    tune, ten = (workspace.dataset(name) for name in ("fashion_tune", "fashion_10k"))
    assert tune.part_of == ten.part_of == "fashion_mnist"
    assert ten.skip_images == 0
    assert tune.skip_images == ten.train_images == tune.train_images
    assert tune.skip_images + tune.train_images + tune.held_out <= 60_000
    assert ten.held_out is None


def test_other_number_of_classes_than_the_file_says_is_refused(idx):
    about = FASHION.model_copy(update={"classes": 10})
    with pytest.raises(UserError, match="has 3 classes; its file says 10"):
        load("small", MODEL, 0, about, idx[0])


def test_debians_fashion_mnist_is_what_the_config_says():
    workspace = Workspace(Path(__file__).parents[2])
    about = workspace.dataset("fashion_mnist")
    folder = Path(about.place)
    if about.download.missing(folder):
        without("fashion-mnist", "needs Debian's package dataset-fashion-mnist")
    for name, digest in about.download.files.items():
        content = gzip.decompress((folder / name).read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
    for split, count in (("train", 60_000), ("t10k", 10_000)):
        images = read_idx(folder / f"{split}-images-idx3-ubyte")
        labels = read_idx(folder / f"{split}-labels-idx1-ubyte")
        assert images.shape == (count, 28, 28)
        assert np.bincount(labels).tolist() == [count // 10] * 10
        if split == "train":
            mean, std = images.mean() / 255, images.std() / 255
    assert (round(mean, 3), round(std, 3)) == (0.286, 0.353)
    assert (about.mean, about.std) == ((0.286,), (0.353,))
