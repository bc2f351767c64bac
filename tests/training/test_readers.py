"""The same images from every layout, and a check that finds what is wrong with a data set."""

import errno
import os
import shutil
import tarfile
import time

import pytest

from ofq.config.datasets import locate
from ofq.errors import UserError
from ofq.training.data import tars as tar_files
from ofq.training.data.decoding import Plain
from ofq.training.data.readers import Census, describe, examine, open_split

from tests.support.pictures import CLASSES, TRAIN, VAL, make_folder, make_shards, make_tars


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures") / "images")


def hugging_face(folder, root):
    pytest.importorskip("datasets")
    shutil.copytree(folder, root)
    return root


LAYOUTS = {
    "folder": (lambda folder, root: shutil.copytree(folder, root), ""),
    "tar": (make_tars, ""),
    "wds": (make_shards, "wds/"),
    "hfds": (hugging_face, "hfds/"),
}


def facts(place):
    """As another process sees them."""
    open_split.cache_clear()
    return describe("images", place, "train", "val")


def content(split):
    """Each image's pixels and label, in an order that doesn't depend on the layout."""
    decoded = [split.decode(i, Plain()) for i in range(len(split))]
    return sorted((image.size, image.mode, image.tobytes(), label) for image, label in decoded)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_images_of_the_folder(folder, layout, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    make, prefix = LAYOUTS[layout]
    make(folder, tmp_path / "there")
    place = locate(f"{prefix}there", tmp_path)
    assert place.layout == layout
    census = examine(place, 3, "train", "val")
    assert census == Census(3, {"train": 3 * TRAIN, "val": 3 * VAL})
    for split in ("train", "val"):
        expected = open_split(locate(str(folder), tmp_path), split)
        assert content(open_split(place, split)) == content(expected)
    assert facts(place) == facts(place)
    assert facts(place).images_by_class == {"train": [TRAIN] * 3, "val": [VAL] * 3}


def anew(place, split):
    """A split as another process opens it."""
    open_split.cache_clear()
    return open_split(place, split)


@pytest.fixture
def tars(folder, tmp_path, monkeypatch):
    """Small ones, that count as large."""
    monkeypatch.setattr(tar_files, "_LARGE", 0)
    return make_tars(folder, tmp_path / "tars")


@pytest.mark.parametrize(
    ("split", "index", "tar"),
    [
        ("train", "_train_index.npz", "train.tar"),
        ("val", "val/_val_index.npz", "val/n01.tar"),
    ],
)
def test_large_tars_are_read_through_once_and_when_they_are_new(
    folder, tars, monkeypatch, split, index, tar
):
    place = locate("tars", tars.parent)
    before = facts(place)
    (tars / index).unlink()
    expected = content(anew(locate(str(folder), tars), split))
    assert content(anew(place, split)) == expected
    assert (tars / index).exists()
    assert not list(tars.rglob(".*"))
    assert facts(place) == before
    with monkeypatch.context() as reading:
        reading.setattr(tar_files, "_read_through", None)  # not to be called
        assert content(anew(place, split)) == expected
    (tars / index).write_bytes(b"of another tar file")
    later = time.time() + 10
    os.utime(tars / tar, (later, later))
    assert content(anew(place, split)) == expected


def test_damaged_index_is_made_anew(tars):
    place = locate("tars", tars.parent)
    expected = content(anew(place, "train"))
    index = tars / "_train_index.npz"
    whole = index.read_bytes()
    for damaged in (whole[:100], b"", whole.replace(b"n01", b"n07")):
        index.write_bytes(damaged)
        assert content(anew(place, "train")) == expected
        assert index.read_bytes() == whole


def test_tar_that_is_replaced_by_an_older_one_is_read_anew(tars):
    place = locate("tars", tars.parent)
    assert list(anew(place, "train").classes) == list(CLASSES)
    with tarfile.open(tars / "train.tar", "w") as tar:
        tar.add(tars / "val/n01.tar", arcname="a.tar")
        tar.add(tars / "val/n02.tar", arcname="b.tar")
    os.utime(tars / "train.tar", (0, 0))
    assert list(anew(place, "train").classes) == ["a", "b"]


def test_index_that_cannot_be_written_is_done_without(folder, tars, monkeypatch):
    monkeypatch.setattr(tar_files, "write_file", denied)
    (tars / "_train_index.npz").write_bytes(b"of another tar file")
    os.utime(tars / "_train_index.npz", (0, 0))
    found = content(anew(locate("tars", tars.parent), "train"))
    (tars / "_train_index.npz").unlink()
    assert found == content(anew(locate(str(folder), tars), "train"))
    assert not list(tars.rglob("*.npz"))


def denied(*arguments, **options):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def broken(tmp_path, name):
    root = make_folder(tmp_path / name)
    return root, locate(str(root), tmp_path)


def message(place, classes=3):
    with pytest.raises(UserError) as caught:
        examine(place, classes, "train", "val")
    assert place.at in str(caught.value)
    return str(caught.value)


def test_missing_split_is_named(tmp_path):
    root, place = broken(tmp_path, "no_train")
    shutil.rmtree(root / "train")
    assert "no split 'train'; expected train/CLASS/IMAGE" in message(place)
    root, place = broken(tmp_path, "no_val")
    shutil.rmtree(root / "val")
    assert "neither val/ nor validation/" in message(place)


def test_missing_shards_are_named(folder, tmp_path):
    root = make_shards(folder, tmp_path / "shards")
    for path in root.glob("*train*"):
        path.unlink()
    assert "no split 'train'; expected shards" in message(locate("wds/shards", tmp_path))


def test_class_that_a_split_lacks_is_named(tmp_path):
    root, place = broken(tmp_path, "val_short")
    shutil.rmtree(root / "val/n02")
    assert "split 'val' has no image of n02, which split 'train' has" in message(place)
    root, place = broken(tmp_path, "train_short")
    shutil.rmtree(root / "train/n10")
    assert "split 'train' has no image of n10, which split 'val' has" in message(place)


def test_number_of_classes_is_checked(tmp_path):
    root, place = broken(tmp_path, "two")
    for split in ("train", "val"):
        shutil.rmtree(root / split / CLASSES[0])
    assert "2 classes, too few; the recipe needs 3" in message(place)
    _, place = broken(tmp_path, "three")
    assert "3 classes, too many; the recipe needs 2" in message(place, classes=2)


def test_undecodable_first_image_is_named(tmp_path):
    root, place = broken(tmp_path, "corrupt")
    path = root / "val/n01/val_0_0.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    assert f"{path}: not a readable image" in message(place)


def test_shard_without_labels_or_cut_short_is_named(folder, tmp_path):
    root = make_shards(folder, tmp_path / "shards")
    shard = root / "tiny-train-0000.tar"
    shard.write_bytes(b"no tar file at all")
    assert "tiny-train-0000.tar: not a readable shard" in message(locate("wds/shards", tmp_path))


def test_changed_file_changes_the_fingerprint(tmp_path):
    root, place = broken(tmp_path, "changed")
    before = facts(place)
    (root / "val/n01/val_0_0.JPEG").write_bytes(b"")
    assert facts(place).files == before.files
    assert facts(place).fingerprint != before.fingerprint
