"""Checkpoints are whole, hashed, and two deep; a damaged one costs no more than itself."""

import errno
import json
from pathlib import Path

import pytest
import torch

from ofq.errors import UserError
from ofq.runs.checkpoints import examine
from ofq.training.checkpoint import CheckpointStore


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def store(tmp_path, warnings):
    return CheckpointStore(tmp_path / "checkpoint", warn=warnings.append)


def state(step):
    return {"step": step, "weights": torch.full((1000,), float(step))}


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_last_two_are_kept(store):
    for step in (1, 2, 3):
        store.save(step, state(step))
    assert names(store) == [f"step-{s:09d}.{kind}" for s in (2, 3) for kind in ("json", "pt")]
    assert store.load()["step"] == 3


def test_hash_is_that_of_the_file(store):
    store.save(7, state(7))
    assert examine(store.folder / "step-000000007.json") is None


def test_manifest_that_a_trainer_has_just_removed_is_no_error(store):
    assert "can't be read" in examine(store.folder / "step-000000007.json")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


def tear_the_manifest(path):
    path.with_suffix(".json").write_text('{"sha')


def of_a_later_version(path):
    manifest = path.with_suffix(".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "is damaged"), (flip_a_bit, "is damaged"), (remove, "is missing"),
        (tear_the_manifest, "can't be read"),
    ],
)  # fmt: skip
def test_damaged_one_is_told_of_and_the_one_before_it_used(store, warnings, damage, said):
    store.save(1, state(1))
    store.save(2, state(2))
    damage(store.folder / "step-000000002.pt")
    assert store.load()["step"] == 1
    assert len(warnings) == 1
    assert "step-000000002.pt" in warnings[0]
    assert said in warnings[0]
    store.save(3, state(3))
    assert names(store) == [f"step-{s:09d}.{kind}" for s in (1, 3) for kind in ("json", "pt")]


def test_those_of_another_version_are_refused_and_kept(store, warnings):
    store.save(1, state(1))
    store.save(2, state(2))
    of_a_later_version(store.folder / "step-000000002.pt")
    before = names(store)
    with pytest.raises(UserError, match=r"step-000000002\.pt is of format 99, this version reads"):
        store.load()
    assert names(store) == before
    assert not warnings


@pytest.mark.parametrize("kind", ["json", "pt"])
def test_those_that_cannot_be_reached_for_now_are_kept(store, monkeypatch, kind):
    store.save(1, state(1))
    store.save(2, state(2))
    before, opened = names(store), Path.open

    def stale(self, *arguments, **options):
        if self.name == f"step-000000002.{kind}":
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", stale)
        with pytest.raises(OSError, match="Stale"):
            store.load()
    assert names(store) == before
    assert store.load()["step"] == 2


def test_with_all_damaged_there_is_none(store, warnings):
    store.save(1, state(1))
    store.save(2, state(2))
    for path in store.folder.glob("*.pt"):
        flip_a_bit(path)
    assert store.load() is None
    assert len(warnings) == 2


def test_save_that_fails_leaves_the_ones_before_it(store, monkeypatch):
    store.save(1, state(1))
    before = names(store)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ofq.training.checkpoint._Hashing.write", full)
    with pytest.raises((OSError, RuntimeError)):
        store.save(2, state(2))
    assert names(store) == before
    monkeypatch.undo()
    assert store.load()["step"] == 1


def test_what_a_killed_save_left_is_removed_by_the_next(store):
    store.save(1, state(1))
    (store.folder / "step-000000002.pt").write_bytes(b"no manifest yet")
    assert store.load()["step"] == 1
    store.save(3, state(3))
    assert "step-000000002.pt" not in names(store)
    store.clear()
    assert not store.folder.exists()
    assert store.load() is None


def test_nothing_is_written_once_the_guard_objects(store):
    store.save(1, state(1))

    def objects():
        raise RuntimeError("lock lost")

    other = CheckpointStore(store.folder, guard=objects)
    with pytest.raises(RuntimeError, match="lock lost"):
        other.save(2, state(2))
    assert store.load()["step"] == 1
