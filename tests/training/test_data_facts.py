"""What a run saw of its data is on record, and what builds on the run must see the same."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ofq.config import Workspace
from ofq.config.datasets import facts_in, locate
from ofq.errors import UserError
from ofq.runs import inputs
from ofq.runs.folder import RunFolder
from ofq.training import models
from ofq.training.checkpoint import CheckpointStore
from ofq.training.data import source as data
from ofq.training.data.readers import describe, open_split
from ofq.training.teacher import Teacher, cached_teacher_logits
from ofq.training.weights import recorded_facts, save_weights

from tests.support.own_process import main_out_of_time, run_ofq
from tests.support.pictures import CLASSES, NANO, make_folder, make_shards

SITE = "studies: [tiny]\ndata: {{imagenet: {}}}\n"
RECIPE = """
dataset: imagenet
models: [test_vit]
classes: 3
stages:
  fp: {epochs: 1, batch_size: 4, lr: 2.0e-3}
  qat:
    epochs: 1
    batch_size: 4
    lr: 1.0e-3
    distillation: true
    teacher: {cached: true}
    images: {crop_pct: 0.9}
"""


def facts(root):
    open_split.cache_clear()
    return describe("images", locate(str(root), root), "train", "val")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("facts") / "images")


@pytest.fixture
def seen(folder):
    return facts(folder)


def test_facts_outlast_json(seen):
    assert facts_in(json.loads(json.dumps(seen.record())), "a record") == seen
    assert seen.difference(seen) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "train/n02").rename(root / "train/a"), "class 0 is 'a', not 'n01'"),
        (lambda root: shutil.rmtree(root / "train/n10"), "there are 2 classes, not 3"),
        (lambda root: (root / "train/n02/train_1_0.JPEG").unlink(),
         "6 images of 'n02' in split 'train', not 7"),
        (lambda root: Image.new("RGB", (9, 9)).save(root / "val/n02/val_1_0.JPEG"),
         "the images of split 'val' are others (sha256:"),
    ],
)  # fmt: skip
def test_difference_of_data_is_told(folder, seen, tmp_path, change, told):
    root = shutil.copytree(folder, tmp_path / "other")
    change(root)
    assert facts(root).difference(seen).startswith(told)


def test_other_images_of_the_same_classes_are_no_other_classes(folder, seen, tmp_path):
    other = make_folder(tmp_path / "other", val=2)
    assert facts(other).difference(seen, images=False) is None
    assert facts(other).difference(seen) is not None


def test_classes_with_numbers_alone_are_compared_by_their_count(folder, seen, tmp_path):
    make_shards(folder, tmp_path / "shards")
    shards = describe("x", locate("wds/shards", tmp_path), "val")
    assert shards.difference(seen, images=False) is None
    fewer = shards.model_copy(update={"classes": 2, "class_names": ["0", "1"]})
    assert fewer.difference(seen, images=False) == "there are 2 classes, not 3"


def test_records_of_another_rule_are_not_compared():
    old = {"name": "imagenet", "classes": 3, "files": 30, "fingerprint": "sha256:00"}
    assert facts_in(old, "a record") is None
    assert facts_in(None, "a record") is None


def test_record_from_before_the_facts_has_none(tmp_path):
    old = {"name": "digits", "examples": 1797, "fingerprint": "sha256:00"}
    (tmp_path / "provenance.json").write_text(json.dumps({"data": old, "attempts": [{}]}))
    assert inputs.recorded_data(RunFolder(tmp_path)) is None


def test_record_that_goes_on_from_before_the_facts_has_those_of_its_last_attempt(seen, tmp_path):
    old = {"name": "imagenet", "classes": 3, "fingerprint": "sha256:00"}
    attempts = [{}, {"origin": {"data": seen.record()}}]
    (tmp_path / "provenance.json").write_text(json.dumps({"data": old, "attempts": attempts}))
    assert inputs.recorded_data(RunFolder(tmp_path)) == seen


@pytest.mark.parametrize(
    "change",
    [{"class_names": ["x"]}, {"classes": "3"}, {"fingerprints": 7}, {"images_by_class": {}},
     {"class_names": None}, {"images": {"train": "many"}}],
)  # fmt: skip
def test_damaged_facts_are_refused_with_their_record(seen, change):
    with pytest.raises(UserError, match=r"^provenance.json: damaged: 'data") as caught:
        facts_in(seen.record() | change, "provenance.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "classes"), [("digits", 10), ("toy_regression", 0)])
def test_data_that_come_with_the_package_are_described_likewise(name, classes):
    model = "micro_deit_patch2_8" if classes else "toy_regression_4"
    found = data.describe(name, data.load(name, model, 0))
    assert found.class_names == [str(number) for number in range(classes)]
    assert found.difference(data.describe(name, data.load(name, model, 0))) is None
    assert found.difference(data.describe(name, data.load(name, model, 1))).startswith(
        ("the images", "8", "9")
    )
    if classes:
        assert sum(found.images_by_class["val"]) == found.images["val"] == 900


def test_weights_and_checkpoints_keep_the_facts(seen, tmp_path):
    save_weights(models.build(NANO, 3), tmp_path / "a.safetensors", seen)
    assert recorded_facts(tmp_path / "a.safetensors") == seen
    save_weights(models.build(NANO, 3), tmp_path / "b.safetensors")
    assert recorded_facts(tmp_path / "b.safetensors") is None
    CheckpointStore(tmp_path / "c", facts=seen).save(1, {"step": 1})
    state = CheckpointStore(tmp_path / "c").load()
    assert facts_in(state["data"], "a checkpoint") == seen


def test_checkpoint_of_a_training_on_other_data_is_refused(folder, seen, tmp_path):
    CheckpointStore(tmp_path / "c", facts=seen).save(1, {"step": 1})
    other = facts(make_folder(tmp_path / "other", val=2))
    with pytest.raises(
        UserError, match=r"step-000000001.pt: of a training on other data: 2 images"
    ):
        CheckpointStore(tmp_path / "c", facts=other).load()
    assert CheckpointStore(tmp_path / "c", facts=seen).load()["step"] == 1
    CheckpointStore(tmp_path / "old").save(1, {"step": 1})
    assert CheckpointStore(tmp_path / "old", facts=seen).load()["step"] == 1


@pytest.mark.parametrize("content", ["cut", "shape", "type", "text"])
def test_kept_answers_that_are_no_answers_on_these_images_are_refused(tmp_path, content):
    source = data.load("digits", "micro_deit_patch2_8", 0)
    file = tmp_path / "answers.npy"
    shape = (source.examples - 1, 10) if content == "shape" else (source.examples, 10)
    np.save(file, np.zeros(shape, np.float64 if content == "type" else np.float32))
    if content == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if content == "text":
        file.write_text("no answers")
    with pytest.raises(UserError, match=r"answers.npy: not the teacher's answers .*; remove it"):
        cached_teacher_logits(file, Teacher(torch.nn.Identity()), source, *process())


def process():
    from ofq.stopping import StopRequest
    from ofq.training.distributed import SINGLE_PROCESS

    return SINGLE_PROCESS, StopRequest()


@pytest.mark.slow
def test_runs_on_other_data_than_those_they_build_on_are_refused(checkout, folder):
    """Of a chain of runs: the student, a resumed attempt, and `ofq eval`."""
    (checkout / "config/recipes/small.yaml").write_text(RECIPE)
    study = checkout / "config/studies/tiny.yaml"
    text = study.read_text().replace("micro_deit_patch2_8", "test_vit")
    study.write_text(text.replace("[lsq, statsq+qkr+cga]", "[statsq]").replace("[0, 1]", "[0]"))
    (checkout / "config/config.yaml").write_text(SITE.format(checkout / "images"))
    images = shutil.copytree(folder, checkout / "images")
    first, second = Workspace(checkout).grid("tiny").runs()
    parent, student = (RunFolder(checkout / "results/runs" / name) for name in (first, second))
    assert run_ofq(checkout, "train", "--no-track", first).returncode == 0
    expected = facts(images)
    assert inputs.recorded_data(parent).class_names == list(CLASSES)
    assert recorded_facts(parent.path / "model.safetensors") == inputs.recorded_data(parent)
    assert inputs.recorded_data(parent).difference(expected) is None
    provenance = (parent.path / "provenance.json").read_text()
    assert '"class_names": ["n01", "n02", "n10"]' in provenance

    moved = images / "train/n02"
    moved.rename(images / "train/a")
    (images / "val/n02").rename(images / "val/a")
    done = run_ofq(checkout, "train", "--no-track", second)
    assert done.returncode == 2
    assert f"aren't those of {first}" in done.stderr
    assert "class 0 is 'a', not 'n01'" in done.stderr
    assert not (student.path / "run.json").exists()
    (images / "train/a").rename(moved)
    (images / "val/a").rename(images / "val/n02")

    done = run_ofq(
        checkout, "train", "--no-track", second, "--time-limit", "1", entry=main_out_of_time
    )
    assert done.returncode == 75, done.stderr
    (answers,) = (checkout / "results/teacher").iterdir()
    extra = images / "train/n01/extra.JPEG"
    shutil.copy(images / "train/n01/train_0_0.JPEG", extra)
    done = run_ofq(checkout, "train", "--no-track", second)
    assert done.returncode == 2
    assert "8 images of 'n01' in split 'train', not 7" in done.stderr
    extra.unlink()
    assert run_ofq(checkout, "train", "--no-track", second).returncode == 0
    assert list((checkout / "results/teacher").iterdir()) == [answers]

    weights = student.path / "model.safetensors"
    options = ("--model", "test_vit", "--bits", "W2A2", "--data")
    other = make_folder(checkout / "other", val=2)
    done = run_ofq(checkout, "eval", weights, *options, "other")
    assert done.returncode == 0, done.stderr
    assert "of 6 images right" in done.stdout
    (other / "val/n01").rename(other / "val/z")
    done = run_ofq(checkout, "eval", weights, *options, "other")
    assert done.returncode == 2
    assert "class 0 is 'n02', not 'n01'" in done.stderr
    shutil.rmtree(other / "val/z")
    done = run_ofq(checkout, "eval", weights, *options, "other")
    assert done.returncode == 2
    assert "other classes" in done.stderr
