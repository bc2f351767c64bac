"""Training on images of files, and the teacher: live, in half precision, or from a file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ofq.config import Quantization, Training
from ofq.config.datasets import locate
from ofq.config.files import parse
from ofq.config.images import Images
from ofq.config.run import QatRun
from ofq.errors import UserError
from ofq.stopping import Interrupted, StopRequest
from ofq.training import models
from ofq.training.build import Inputs, build
from ofq.training.checkpoint import CheckpointStore
from ofq.training.data.images import ImageSource, open_images
from ofq.training.distributed import SINGLE_PROCESS
from ofq.training.objective import distillation_loss
from ofq.training.teacher import Clock, Teacher, cached_teacher_logits
from ofq.training.trainer import Session, Silence
from ofq.training.weights import save_weights

from tests.support.own_process import run_ofq
from tests.support.pictures import NANO, make_folder

pytestmark = pytest.mark.usefixtures("one_thread")

PAPERS = {"augmentation": {"policy": "rand-m9-mstd0.5-inc1", "erasing": 0.25}}
MIXED = PAPERS | {"mixing": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1}, "repeats": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = make_folder(tmp_path_factory.mktemp("pictures") / "images")
    torch.manual_seed(4)
    save_weights(models.build(NANO, 3), root.parent / "teacher.safetensors")
    return root


class Stopping(Silence):
    """Asks training to stop after some step; keeps its rows."""

    def __init__(self, stop, after):
        self.stop, self.after, self.rows = stop, after, []

    def step(self, step):
        if step == self.after:
            self.stop.cause = "SIGTERM"

    def epoch(self, metrics, layers):
        self.rows.append(metrics)


def train(place, folder, images, stops=(), **changes):
    """A W2A2 run of two epochs of three steps, in pieces; its weights, rows and trainer."""
    values = {"epochs": 2, "batch_size": 6, "lr": 1e-3, "distillation": True, "images": images}
    training = parse(Training, values | changes, "test")
    quantization = Quantization(bits="W2A2", weight_quantizer="statsq", qkr=True)
    config = QatRun(
        dataset="imagenet", model=NANO, seed=0, training=training, quantization=quantization,
        pretrained="a.pth",
    )  # fmt: skip
    rows, store = [], CheckpointStore(folder / "checkpoint")
    folder.mkdir()
    for after in (*stops, None):
        stop = StopRequest()
        observer = Stopping(stop, after)
        inputs = Inputs(
            pretrained=place.parent / "teacher.safetensors",
            teacher_logits=folder.parent / "logits.npy",
        )
        files = ImageSource(locate(str(place), place), workers=1)
        trainer = build(config, inputs, Session(observer, store, stop), files=files)
        try:
            trainer.run()
        except Interrupted:
            assert trainer.step == after
        rows += observer.rows
    save_weights(trainer.model, folder / "end.safetensors")
    return load_file(folder / "end.safetensors"), rows, trainer


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("images", [PAPERS, MIXED], ids=["plain", "mixed"])
def test_run_that_is_interrupted_within_an_epoch_ends_bit_identical(place, tmp_path, images):
    whole, rows, _ = train(place, tmp_path / "whole", images)
    pieces, again, _ = train(place, tmp_path / "pieces", images, stops=[1, 2, 5])
    assert equal(whole, pieces)
    drop = {"time"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in rows] == [
        {k: v for k, v in row.items() if k not in drop} for row in again
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_near_fp32_with_weights_in_fp32(place, tmp_path, precision):
    full, rows, _ = train(place, tmp_path / "full", PAPERS)
    half, other, trainer = train(place, tmp_path / "half", PAPERS, precision=precision)
    assert not {torch.bfloat16, torch.float16} & {t.dtype for t in half.values()}
    assert not equal(full, half)
    assert other[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=0.1)
    assert trainer.scaler.is_enabled() == (precision == "fp16")


def test_loss_scale_that_overflows_falls_and_the_step_is_skipped(place, tmp_path):
    _, _, trainer = train(place, tmp_path / "run", PAPERS, precision="fp16")
    before = [p.detach().clone() for p in trainer.model.parameters()]
    scale = trainer.scaler.get_scale()
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 2.0**120})
    batch = next(trainer.data.train_batches(0, trainer.training.batch_size))
    trainer.train_step(batch)
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    assert trainer.scaler.get_scale() == 2.0**119
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": scale})
    trainer.train_step(batch)
    assert not torch.equal(next(trainer.model.parameters()), before[0])


def test_interrupted_fp16_ends_bit_identical(place, tmp_path):
    whole, _, one = train(place, tmp_path / "whole", PAPERS, precision="fp16")
    pieces, _, other = train(place, tmp_path / "pieces", PAPERS, precision="fp16", stops=[1, 3])
    assert equal(whole, pieces)
    assert one.scaler.state_dict() == other.scaler.state_dict()


def test_teacher_answers_in_its_own_precision_without_gradient():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    seen = []
    models_of = {p: Teacher(models.build(NANO, 3), p) for p in ("fp32", "bf16")}
    models_of["bf16"].model.load_state_dict(models_of["fp32"].model.state_dict())
    hook = models_of["bf16"].model.head.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    full, half = (teacher.logits(images) for teacher in models_of.values())
    hook.remove()
    assert seen == [torch.bfloat16]
    assert half.dtype == full.dtype == torch.float32
    assert not half.requires_grad
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, atol=0.05)
    assert torch.equal(full, models_of["fp32"].model.eval()(images))


def test_kept_answers_train_to_the_weights_of_live_ones(place, tmp_path):
    """Each image's answer is the same alone and in any batch, but for rounding."""
    live, _, trainer = train(place, tmp_path / "live", {})
    kept, _, other = train(place, tmp_path / "kept", {}, teacher={"cached": True})
    assert trainer.objective.teacher is not None
    assert other.objective.teacher is None
    for name, tensor in live.items():
        assert torch.allclose(tensor, kept[name], atol=1e-4), name


def unchanging(place):
    """Images as evaluation sees them."""
    return open_images(ImageSource(locate(str(place), place)), Images(), NANO, 0)


def test_making_answers_ends_with_a_request_to_stop(place, tmp_path):
    stop = StopRequest()
    stop.cause = "SIGTERM"
    teacher = Teacher(models.build(NANO, 3))
    with pytest.raises(Interrupted, match="SIGTERM"):
        cached_teacher_logits(
            tmp_path / "answers.npy", teacher, unchanging(place), SINGLE_PROCESS, stop
        )
    assert not list(tmp_path.iterdir())


def test_kept_answers_are_computed_once_and_belong_to_their_images(place, tmp_path):
    data = unchanging(place)
    teacher = Teacher(models.build(NANO, 3))
    file = tmp_path / "made" / "answers.npy"
    answers = cached_teacher_logits(file, teacher, data, SINGLE_PROCESS, StopRequest())
    calls = teacher.clock.calls
    again = cached_teacher_logits(file, teacher, data, SINGLE_PROCESS, StopRequest())
    assert teacher.clock.calls == calls > 0
    assert np.array_equal(answers, again)
    for images, labels, logits in data.with_teacher_logits(answers).train_batches(0, 6):
        assert torch.allclose(logits, teacher.logits(images), atol=1e-5)
        live = distillation_loss(images.flatten(1)[:, :3], labels, logits)
        assert torch.isfinite(live)


@pytest.mark.parametrize("images", [PAPERS, {"mixing": {"mixup": 0.8}}], ids=["augmented", "mixed"])
def test_keeping_answers_on_random_images_is_refused(images):
    values = {"epochs": 1, "batch_size": 6, "lr": 1, "distillation": True, "images": images}
    with pytest.raises(UserError, match=r"cached is true, but images.* at random.*allowed: cached"):
        parse(Training, values | {"teacher": {"cached": True}}, "test")


def test_keeping_answers_of_no_teacher_is_refused():
    values = {"epochs": 1, "batch_size": 6, "lr": 1, "teacher": {"cached": True}}
    with pytest.raises(UserError, match="nothing is distilled"):
        parse(Training, values, "test")


def test_clock_adds_up_calls():
    clock = Clock()
    assert clock.mean() is None
    for _ in range(3):
        clock.begin(torch.device("cpu"))
        clock.end()
    assert clock.calls == 3
    assert clock.mean() == pytest.approx(clock.seconds / 3)


def test_odd_passes_cannot_be_mixed(place, tmp_path):
    with pytest.raises(UserError, match=r"mixes pairs, but 5 images per step.*even"):
        train(place, tmp_path / "odd", {"mixing": {"mixup": 0.8}}, batch_size=5)


RECIPE = """
dataset: imagenet
models: [deit_tiny_distilled_patch16_224]
classes: 3
pretrained: start.pth
stages:
  qat:
    epochs: 1
    batch_size: 6
    lr: 1.0e-4
    distillation: true
    images: {augmentation: {policy: rand-m9-mstd0.5-inc1}}
"""


@pytest.mark.slow
def test_command_trains_on_images_and_records_data_recipe_and_cost(checkout, place):
    from ofq.config import Workspace
    from ofq.runs.folder import RunFolder

    (checkout / "config/recipes/small.yaml").write_text(RECIPE)
    study = checkout / "config/studies/tiny.yaml"
    text = study.read_text().replace("micro_deit_patch2_8", "deit_tiny_distilled_patch16_224")
    study.write_text(text.replace("[lsq, statsq+qkr+cga]", "[statsq]"))
    site = checkout / "config/config.yaml"
    site.write_text(f"studies: [tiny]\nunreadable: skip\ndata: {{imagenet: {checkout}/images}}\n")
    make_folder(checkout / "images")
    (checkout / "images/val/n02/val_1_1.JPEG").write_bytes(b"no image")
    torch.save(models.build("deit_tiny_distilled_patch16_224", 3).state_dict(),
               checkout / "start.pth")  # fmt: skip
    run = next(name for name in Workspace(checkout).grid("tiny").runs() if "w2a2" in name)
    done = run_ofq(checkout, "train", "--no-track", run)
    assert done.returncode == 0, done.stderr
    folder = RunFolder(checkout / "results/runs" / run)
    data = folder.provenance()["data"]
    assert (data["classes"], data["images"], data["files"]) == (3, {"train": 21, "val": 9}, 30)
    assert folder.provenance()["recipe"] is None
    result = folder.result()
    assert (result["images"], result["unreadable_images"]) == (8, 1)
    cost = next(event for event in folder.events() if event["event"] == "taught")
    assert 0 < cost["teacher_share"] < 1
    assert cost["teacher_seconds_per_step"] < cost["seconds_per_step"]


@pytest.mark.slow
def test_data_set_with_a_class_too_few_stops_the_first_job(checkout, place):
    from ofq.config import Workspace

    (checkout / "config/recipes/small.yaml").write_text(RECIPE.replace("classes: 3", "classes: 4"))
    study = checkout / "config/studies/tiny.yaml"
    text = study.read_text().replace("micro_deit_patch2_8", "deit_tiny_distilled_patch16_224")
    study.write_text(text.replace("[lsq, statsq+qkr+cga]", "[statsq]"))
    (checkout / "config/config.yaml").write_text(f"studies: [tiny]\ndata: {{imagenet: {place}}}\n")
    torch.save({}, checkout / "start.pth")
    run = next(name for name in Workspace(checkout).grid("tiny").runs() if "w2a2" in name)
    done = run_ofq(checkout, "train", "--no-track", run)
    assert done.returncode == 2
    words = ("config.yaml", "'data.imagenet'", "3 classes, too few; the recipe needs 4")
    assert all(word in done.stderr.replace("\n", " ") for word in words), done.stderr
    assert "Traceback" not in done.stderr
