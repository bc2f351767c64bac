"""Images of files: what a model sees is a function of seed, epoch and image alone."""

import errno
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from multiprocessing.reduction import DupFd
from pathlib import Path

import numpy as np
import pytest
import torch

from ofq.config.datasets import locate
from ofq.config.images import Augmentation, Images, Mixing
from ofq.errors import TryAgain, UserError
from ofq.training import models
from ofq.training.data import loading
from ofq.training.data.augmentation import mix, randomness_of
from ofq.training.data.images import ImageSource, open_images
from ofq.training.data.loading import workers_watched
from ofq.training.data.readers import Split
from ofq.training.data.source import Batch
from ofq.training.distributed import SINGLE_PROCESS, SingleProcess
from ofq.training.objective import Classification

from tests.support.pictures import CLASSES, NANO, TRAIN, VAL, make_folder

PAPERS = Augmentation(policy="rand-m9-mstd0.5-inc1", erasing=0.25, interpolation="random")
BATCH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures") / "images")


def data(folder, images=None, seed=0, **options):
    files = ImageSource(locate(str(folder), folder), **{"workers": 1, **options})
    return open_images(files, images or Images(augmentation=PAPERS), NANO, seed)


class Of(SingleProcess):
    """A process of several, for its part alone."""

    def __init__(self, rank, count):
        super().__init__(torch.device("cpu"))
        self.rank, self.count = rank, count


def batches(source, epoch=0, **options):
    return list(source.train_batches(epoch, BATCH, **options))


def same(one, other):
    if len(one) != len(other):
        return False
    pairs = zip(one, other, strict=True)
    return all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels) for a, b in pairs
    )


MIXED = Images(augmentation=PAPERS, mixing=Mixing(mixup=0.8, cutmix=1.0, smoothing=0.1), repeats=3)


@pytest.mark.parametrize("images", [Images(augmentation=PAPERS), MIXED], ids=["plain", "mixed"])
def test_batches_are_a_function_of_seed_and_epoch(folder, images):
    first = batches(data(folder, images))
    assert len(first) == 3 * TRAIN // BATCH
    torch.manual_seed(5)  # neither this process's random numbers nor the loaders matter
    np.random.seed(5)
    assert same(first, batches(data(folder, images, workers=2)))
    assert same(first[2:], batches(data(folder, images), first=2))
    assert not same(first, batches(data(folder, images), epoch=1))
    assert not same(first, batches(data(folder, images, seed=1)))


@pytest.mark.parametrize("images", [Images(augmentation=PAPERS), MIXED], ids=["plain", "mixed"])
def test_devices_share_the_batches_of_one(folder, images):
    whole = batches(data(folder, images))
    # three devices, each with two of a batch's six images
    parts = [batches(data(folder, images), group=Of(rank, 3)) for rank in range(3)]
    joined = [
        Batch(torch.cat([b.inputs for b in shares]), torch.cat([b.labels for b in shares]))
        for shares in zip(*parts, strict=True)
    ]
    assert same(whole, joined)


def test_loading_leaves_the_random_numbers_of_training_alone(folder):
    source = data(folder, MIXED)
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)
    batches(source)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


def keys_of(source, epoch, batch_size, steps):
    shuffled = torch.randperm(3 * TRAIN)
    return [source._keys(shuffled, epoch, batch_size, step) for step in range(steps)]


def test_every_image_is_once_in_an_epoch_and_augmented_anew_in_the_next(folder):
    source = data(folder)
    one, other = (
        {key.number: key for batch in keys_of(source, epoch, 7, 3) for key in batch}
        for epoch in (0, 1)
    )
    assert set(one) == set(other) == set(range(3 * TRAIN))
    sample = source.train[one[4]].image
    assert torch.equal(sample, source.train[one[4]].image)
    assert not torch.equal(sample, source.train[other[4]].image)


def test_repeated_images_are_augmented_apart_and_never_neighbours(folder):
    source = data(folder, Images(augmentation=PAPERS, repeats=3))
    keys = keys_of(source, 0, BATCH, 3)
    counts = {}
    for batch in keys:
        for one, other in zip(batch[::2], batch[1::2], strict=True):
            assert one.number != other.number
        for key in batch:
            counts.setdefault(key.number, set()).add(key.copy)
    assert len(counts) == 3 * BATCH // 3
    assert all(copies == {0, 1, 2} for copies in counts.values())
    key = keys[0][0]
    again = key._replace(copy=1)
    assert not torch.equal(source.train[key].image, source.train[again].image)


def test_random_numbers_are_put_back_and_differ_by_key():
    torch.manual_seed(0)
    with randomness_of(1, 2):
        one = torch.rand(1), np.random.rand()
    with randomness_of(1, 3):
        other = torch.rand(1), np.random.rand()
    with randomness_of(1, 2):
        again = torch.rand(1), np.random.rand()
    assert one == again != other
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_pixels(kind):
    """By pixels: image i is filled with the number i, so a mixture's mean tells its shares."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    np.random.seed(1)
    mixed, labels = mix(images, torch.arange(4), 4, Mixing(**{kind: 1.0}))
    for i, partner in enumerate((1, 0, 3, 2)):
        share = labels[i, i].item()
        assert 0 < share < 1
        assert labels[i, partner].item() == pytest.approx(1 - share)
        mean = share * i + (1 - share) * partner
        assert mixed[i].mean().item() == pytest.approx(mean, abs=1e-5)
    if kind == "cutmix":
        assert set(mixed.unique().tolist()) <= {0, 1, 2, 3}


def test_smoothing_gives_every_class_its_part():
    np.random.seed(0)
    mixing = Mixing(mixup=1, smoothing=0.1)
    _, labels = mix(torch.zeros(2, 3, 8, 8), torch.tensor([0, 0]), 5, mixing)
    assert labels[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])


@pytest.mark.parametrize(("batch", "count"), [(1, 1), (4, 1), (4, 2), (100, 3), (2, 5)])
def test_evaluation_counts_each_image_once_on_any_devices(folder, batch, count):
    torch.manual_seed(0)
    model = models.build(NANO, 3)
    found = [
        Classification()
        .evaluate(model, filled(folder, batch, Of(rank, count)), SINGLE_PROCESS)
        .measures
        for rank in range(count)
        if any(len(b.labels) for b in data(folder).test_batches(batch, Of(rank, count)))
    ]
    with torch.no_grad():
        whole = list(data(folder).test_batches(3))
        images, labels = (torch.cat([b[i] for b in whole]) for i in range(2))
        right = int((model.eval()(images).argmax(-1) == labels).sum())
    assert sum(f["images"] for f in found) == 3 * VAL
    assert sum(f["correct"] for f in found) == right


def filled(folder, batch, group):
    return [b for b in data(folder).test_batches(batch, group) if len(b.labels)]


_LEFT_IN_THE_MIDDLE = """
import sys
sys.path.insert(0, sys.argv[1])
import ofq.quantization
from tests.training import test_images
batches = test_images.data(test_images.Path(sys.argv[2]), test_images.Images()).train_batches(0, 6)
next(batches)
"""


@pytest.fixture
def loader(monkeypatch):
    """A process that loads images, as far as the watch knows."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
    process.start()
    monkeypatch.setattr(loading, "_started", [process])
    yield process
    process.kill()


@pytest.mark.parametrize("error", [ConnectionResetError, BrokenPipeError, EOFError])
def test_failed_talk_with_a_killed_loader_is_told_as_its_death(loader, error):
    loader.kill()
    with pytest.raises(TryAgain, match="a process that loads images was killed"), workers_watched():
        raise error


def test_pinning_that_ends_with_a_killed_loader_is_told_as_its_death(loader):
    loader.kill()
    with pytest.raises(TryAgain, match="want of memory"), workers_watched():
        raise RuntimeError("Pin memory thread exited unexpectedly")


def test_signal_that_ended_a_loader_is_named(loader):
    said = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"
    with pytest.raises(TryAgain, match=r"bus error, .* of room in /dev/shm"), workers_watched():
        raise RuntimeError(said)


@pytest.mark.parametrize(
    "text", ["Caught RuntimeError in DataLoader worker process 0.", "Pin memory thread exited"]
)
def test_failure_in_a_loader_that_lives_is_no_death(loader, text):
    with pytest.raises(RuntimeError, match=text), workers_watched():
        raise RuntimeError(text)


class Away:
    """A data set on a file system that doesn't answer."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return BATCH

    def __getitem__(self, index):
        raise OSError(self.error, os.strerror(self.error))

    def filename(self, index, **options):
        return f"{index}.jpeg"


@pytest.mark.parametrize(
    ("error", "told"),
    [(errno.ESTALE, TryAgain), (errno.EIO, TryAgain), (errno.EACCES, UserError)],
)
def test_image_that_cannot_be_reached_for_now_is_no_mistake(folder, error, told):
    source = data(folder)
    source.train.split = Split(Away(error), source.train.split.classes)
    with pytest.raises(told, match=rf"^\d+.jpeg: {os.strerror(error)}$"):
        batches(source)


def test_batch_that_finds_no_room_in_shared_memory_ends_the_epoch(folder, monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # in the forked loaders, too
    with pytest.raises(TryAgain, match=r"^a batch of .* can't be handed .*make /dev/shm larger"):
        batches(data(folder))


def hand_over_and_leave(error):
    """As a loader whose trainer is gone while a batch is handed over, or that fails at that."""
    loading._start_worker(0)
    with open(os.devnull) as file:
        handed = DupFd(file.fileno())
        if error is None:
            socket.socket(socket.AF_UNIX).connect(handed._id[0])  # closed at once
        else:
            sys.excepthook(type(error), error, None)
        os.close(handed.detach())  # the thread that hands over has served who left before


@pytest.mark.parametrize("error", [None, OSError("something else")], ids=["gone", "fails"])
def test_loader_says_nothing_of_a_trainer_that_left(error, capfd):
    worker = multiprocessing.get_context("fork").Process(target=hand_over_and_leave, args=[error])
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert capfd.readouterr().err == ("" if error is None else "OSError: something else\n")


def test_errors_of_other_causes_are_left_alone(loader):
    with pytest.raises(OSError, match="no room"), workers_watched():
        raise OSError("no room")


def test_process_that_is_left_in_the_middle_of_an_epoch_ends(folder):
    command = [sys.executable, "-c", _LEFT_IN_THE_MIDDLE, Path(__file__).parents[2], folder]
    subprocess.run(command, check=True, timeout=120)


@pytest.fixture
def corrupt(tmp_path):
    root = make_folder(tmp_path / "corrupt")
    for name in ("train/n02/train_1_3.JPEG", "val/n02/val_1_1.JPEG"):
        path = root / name
        path.write_bytes(path.read_bytes()[:300])
    return root


def test_unreadable_image_ends_training_with_its_name(corrupt):
    with pytest.raises(UserError, match=r"^[^\n]*train_1_3.JPEG: not a readable image$"):
        batches(data(corrupt))


def test_skipped_image_is_replaced_in_training_left_out_in_evaluation_and_named_once(corrupt):
    heard = []
    source = data(corrupt, unreadable="skip", on_unreadable=heard.append)
    for epoch in (0, 1):
        assert [len(b.labels) for b in source.train_batches(epoch, 7)] == [7, 7, 7]
        labels = torch.cat([b.labels for b in source.test_batches(2)])
        assert labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert sorted(name.rpartition("/")[2] for name in heard) == ["train_1_3.JPEG", "val_1_1.JPEG"]


def test_file_that_cannot_be_read_is_no_image_to_skip(tmp_path):
    root = make_folder(tmp_path / "gone")
    source = data(root, unreadable="skip")
    (root / "train/n02/train_1_3.JPEG").unlink()
    with pytest.raises(UserError, match=r"train_1_3.JPEG: No such file"):
        batches(source)


def test_images_are_resized_and_cropped_as_the_recipe_says(folder):
    """Without augmentation training sees what evaluation sees, and crop_pct changes both."""
    plain = {b.inputs.sum().item() for b in data(folder, Images()).in_order(1)}
    other = {b.inputs.sum().item() for b in data(folder, Images(crop_pct=0.5)).in_order(1)}
    assert len(plain) == len(CLASSES) * TRAIN
    assert not set(plain) & other
