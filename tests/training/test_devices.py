"""Batches and test sets fall into parts that make them up, for any number of devices."""

import pytest
import torch

from ofq.config import Workspace
from ofq.config.stage import split
from ofq.errors import TryAgain, UserError
from ofq.training.data.source import Data
from ofq.training.distributed import SingleProcess, faults_told


def test_recipe_that_asks_for_an_impossible_split_is_refused_with_its_place(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text() + "resources:\n  qat: {gpu: 3}\n")
    with pytest.raises(UserError, match=r"resources.qat.gpu.*64 = 3 x 21 \+ 1"):
        Workspace(checkout).grid("tiny")


def test_devices_leave_runs_their_names(checkout):
    before = list(Workspace(checkout).grid("tiny").runs())
    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text() + "resources:\n  qat: {gpu: 4, device_batch: 5}\n")
    assert list(Workspace(checkout).grid("tiny").runs()) == before


@pytest.mark.parametrize(
    ("batch_size", "devices", "device_batch", "passes", "images"),
    [(32, 1, None, 1, 32), (32, 2, None, 1, 16), (32, 2, 5, 4, 4), (14, 2, 6, 7, 1)],
)
def test_batch_is_split_into_as_few_equal_passes_as_fit(
    batch_size, devices, device_batch, passes, images
):
    found = split(batch_size, devices, device_batch)
    assert (found.devices, found.passes, found.images) == (devices, passes, images)


@pytest.mark.parametrize(
    ("error", "told", "text"),
    [
        (torch.OutOfMemoryError("out of memory. Tried"), UserError, "^out of .*; .*device_batch"),
        (torch.AcceleratorError("uncorrectable ECC error\nx"), TryAgain, r"ECC error\)$"),
        (torch.AcceleratorError("device-side assert triggered"), RuntimeError, "assert"),
        (RuntimeError("shapes"), RuntimeError, "shapes"),
    ],
)
def test_faults_of_a_gpu_are_told_from_failures(error, told, text):
    with pytest.raises(told, match=text), faults_told():
        raise error


@pytest.mark.parametrize(("batch_size", "devices"), [(32, 3), (2, 4)])
def test_batch_that_cannot_be_split_evenly_is_refused(batch_size, devices):
    with pytest.raises(UserError, match=f"batch_size {batch_size} can't be split over {devices}"):
        split(batch_size, devices)


def member(rank: int, count: int) -> SingleProcess:
    """One of several processes, as far as data are concerned."""
    group = SingleProcess(torch.device("cpu"))
    group.rank, group.count = rank, count
    return group


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_parts_of_the_test_set_are_equally_many_and_make_it_up(count, batch_size):
    numbers = torch.arange(23)
    data = Data(numbers, numbers, numbers, numbers, classes=0, seed=0)
    parts = [list(data.test_batches(batch_size, member(rank, count))) for rank in range(count)]
    assert len({len(batches) for batches in parts}) == 1
    assert all(len(batch.inputs) <= batch_size for batches in parts for batch in batches)
    seen = torch.cat([batch.inputs for batches in parts for batch in batches])
    assert sorted(seen.tolist()) == numbers.tolist()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_of_a_training_batch_make_it_up_in_order(count):
    numbers = torch.arange(23)
    data = Data(numbers, numbers, numbers, numbers, classes=0, seed=3)
    whole = [batch.inputs for batch in data.train_batches(1, 8)]
    parts = [
        [batch.inputs for batch in data.train_batches(1, 8, group=member(rank, count))]
        for rank in range(count)
    ]
    for batch, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(batch, torch.cat(pieces))
