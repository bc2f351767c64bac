"""Several processes train what one does, wherever they are interrupted and however many go on."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.lab import Lab, assert_same, build, wait_for
from tests.support.own_process import Forked, working_in
from tests.support.servers import free_port

# Plain SGD and few steps: a sum in another order moves an activation over a rounding threshold now
# and then, and with 2 bits (and AdamW, whose step doesn't shrink with the gradient) such a grain
# grows until the trainings have nothing but their statistics in common.
RECIPE = """
dataset: digits
models: [micro_deit_patch2_8]
stages:
  fp: {epochs: 1, batch_size: 64, lr: 2.0e-3}
  qat: {epochs: 2, batch_size: 224, optimizer: sgd, lr: 0.02, min_lr: 0.01, distillation: true}
  cga: {epochs: 1, batch_size: 224, optimizer: sgd, lr: 0.02, min_lr: 0.01, distillation: true}
"""
TOLERANCE = 1e-3  # of the way that the weights went

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Lab:
    """All stages, trained by one process."""
    return build(tmp_path_factory.mktemp("one"), RECIPE)


def copy(lab: Lab, to: Path, stage: str) -> Lab:
    """A copy in which a stage can be trained again."""
    shutil.copytree(lab.root, to)
    found = Lab(to)
    found.forget(stage)
    return found


@pytest.fixture(scope="module")
def two(one, tmp_path_factory) -> dict[str, Lab]:
    """For each quantized stage, a copy in which two processes trained it."""
    labs = {}
    for stage in ("qat", "cga"):
        labs[stage] = copy(one, tmp_path_factory.mktemp("two") / stage, stage)
        done = labs[stage].train(stage, "--devices", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "224 images per step = 2 x 1 x 112" in done.stdout
    return labs


def weights(lab: Lab, stage: str) -> dict[str, torch.Tensor]:
    return load_file(lab.folder(stage).path / "model.safetensors")


def apart(some: Lab, others: Lab, stage: str) -> float:
    """How far two trainings' weights lie apart, as a share of the way that they went."""
    start = weights(some, {"qat": "fp", "cga": "qat"}[stage])
    ends = [weights(lab, stage) for lab in (some, others)]
    assert ends[0].keys() == ends[1].keys()
    pairs = [(tensor, ends[1][name]) for name, tensor in ends[0].items()]
    shared = [name for name in ends[0] if name in start and ends[0][name].is_floating_point()]
    went = sum(float((ends[0][n] - start[n]).square().sum()) for n in shared) ** 0.5
    between = sum(float((a.float() - b.float()).square().sum()) for a, b in pairs) ** 0.5
    assert went > 0
    return between / went


@pytest.mark.parametrize("stage", ["qat", "cga"])
def test_they_train_the_weights_of_one(one, two, stage):
    assert apart(one, two[stage], stage) < TOLERANCE


@pytest.mark.parametrize("stage", ["qat", "cga"])
def test_each_image_is_counted_once(one, two, stage):
    rows = [lab.folder(stage).rows("metrics") for lab in (one, two[stage])]
    assert len(rows[0]) == len(rows[1])
    for alone, both in zip(*rows, strict=True):
        assert alone["images"] == both["images"] == 900
    # before the first step their weights and scales are the same, bit for bit
    assert rows[0][0]["correct"] == rows[1][0]["correct"]
    assert rows[0][0]["loss"] == pytest.approx(rows[1][0]["loss"], rel=1e-6)


def test_interrupted_they_go_on_as_if_nothing_had_happened(one, two, tmp_path):
    lab = copy(one, tmp_path / "lab", "cga")
    left = lab.train("cga", "--devices", "2", fault=("terminate_at_step", 3))
    assert left.returncode == 75, left.stdout + left.stderr
    assert "stopped by SIGTERM" in left.stderr
    assert "Traceback" not in left.stderr
    begun = shutil.copytree(lab.root, tmp_path / "begun")
    assert lab.train("cga", "--devices", "2").returncode == 0
    assert_same(lab.folder("cga"), two["cga"].folder("cga"))
    # and one process can go on with what two have begun
    assert Lab(begun).train("cga").returncode == 0
    assert apart(two["cga"], Lab(begun), "cga") < TOLERANCE
    assert Lab(begun).folder("cga").result()["attempts"] == 2


@pytest.fixture
def qat(one, tmp_path) -> Lab:
    return copy(one, tmp_path / "lab", "qat")


def test_two_go_on_with_what_one_has_begun(qat, one):
    assert qat.train("qat", fault=("terminate_at_step", 3)).returncode == 75
    assert qat.train("qat", "--devices", "2").returncode == 0
    assert apart(one, qat, "qat") < TOLERANCE


def test_killed_helper_ends_the_attempt_and_says_so(qat, two):
    left = qat.train("qat", "--devices", "2", fault=("kill_helper_at_step", 3))
    assert left.returncode == 75, left.stdout + left.stderr
    assert "rank 1 was killed by SIGKILL" in left.stderr
    assert "Traceback" not in left.stderr
    assert qat.folder("qat").events()[-1]["event"] == "interrupted"
    assert qat.train("qat", "--devices", "2").returncode == 0
    assert_same(qat.folder("qat"), two["qat"].folder("qat"))


def test_helpers_end_with_the_first_process(qat):
    killed = qat.train("qat", "--devices", "2", fault=("kill_at_step", 3))
    assert killed.returncode == -signal.SIGKILL
    wait_for(lambda: not helpers_of(qat))


def test_signal_to_any_process_makes_all_save_and_leave(qat):
    process = qat.start("qat", "--devices", "2", fault=("slow_steps", 2))
    metrics = qat.folder("qat").path / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), 300)
    os.kill(helpers_of(qat)[0], signal.SIGUSR1)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "stopped by SIGUSR1" in told
    assert not helpers_of(qat)


def test_bad_numbers_are_found_by_all(qat):
    recipe = qat.root / "config/recipes/disturbed.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.02", "lr: 1.0e+30"))
    lab = Lab(qat.root)
    failed = lab.train("qat", "--devices", "2")
    assert failed.returncode == 3, failed.stdout + failed.stderr
    assert f"{lab.runs['qat'].id} failed: step 2: patch_embed.proj: " in failed.stderr
    assert "Traceback" not in failed.stderr


def test_checkpoint_that_finds_no_room_is_left_out_by_all(qat, two):
    done = qat.train("qat", "--devices", "2", fault=("fail_in_save", 3))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no checkpoint at step" in done.stdout
    assert_same(qat.folder("qat"), two["qat"].folder("qat"))


def test_processes_started_by_others_meet_by_their_environment(qat, two):
    port = str(free_port())
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    train = ("train", "--no-track", qat.runs["qat"].id)
    started = [
        Forked(qat.root, *train, env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert said[1] == ("", "")
    assert_same(qat.folder("qat"), two["qat"].folder("qat"))


def test_batch_that_cannot_be_split_is_refused_before_anything_is_written(qat):
    refused = qat.train("qat", "--devices", "3")
    assert refused.returncode == 2
    assert "batch_size 224 can't be split over 3 devices: 224 = 3 x 74 + 2" in refused.stderr
    assert not qat.folder("qat").path.exists()


def helpers_of(lab: Lab) -> list[int]:
    """Process ids of those that train along, in this checkout."""
    return working_in(lab.root, "assist")


def test_passes_add_up_to_one_batch(one, tmp_path):
    lab = copy(one, tmp_path / "lab", "qat")
    recipe = lab.root / "config/recipes/disturbed.yaml"
    recipe.write_text(recipe.read_text() + "resources:\n  qat: {device_batch: 60}\n")
    done = lab.train("qat")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "224 images per step = 1 x 4 x 56" in done.stdout
    assert apart(one, lab, "qat") < TOLERANCE
