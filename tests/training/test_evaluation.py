"""Evaluation of weights on digits and on folders of images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import ofq
from ofq.config.datasets import locate
from ofq.errors import UserError
from ofq.stopping import Interrupted, StopRequest
from ofq.training import evaluation, models
from ofq.training.data.images import ImageSource
from ofq.training.data.source import Batch, load
from ofq.training.distributed import SingleProcess
from ofq.training.objective import Classification
from ofq.training.weights import save_weights

from tests.support.own_process import run_ofq
from tests.support.terminals import read_terminal, start_in_terminal

MICRO, TINY = "micro_deit_patch2_8", "deit_tiny_patch16_224"
QUIET = Console(quiet=True)
CLASSES, EACH = 6, 2


def micro():
    torch.manual_seed(0)
    model = ofq.quantize(models.build(MICRO, 10), 2, 2, qkr=True)
    data = load("digits", MICRO, 0)
    ofq.calibrate(model, data.train_inputs[:64])
    return model, data


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "micro.safetensors"
    save_weights(micro()[0], path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes and modes, and a train split that is to be left alone."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            place = root / split / f"class_{label}"
            place.mkdir(parents=True)
            for i in range(EACH if split == "val" else 1):
                size, mode = (240 + 20 * label, 256 + 10 * i), "L" if label % 2 else "RGB"
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(place / f"{i}.png")
    return root


def image_folder(folder, model, batch_size=64):
    files = ImageSource(locate(str(folder), Path()))
    return evaluation.image_files(files, model, batch_size=batch_size)


class Fixed(torch.nn.Module):
    """Answers with the rows of a table, whatever the images."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, images):
        first, self.at = self.at, self.at + len(images)
        return self.logits[first : self.at]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_top1_and_top5_are_those_of_sorting(batch_size):
    logits, targets = torch.randn(50, 8), torch.randint(0, 8, (50,))
    order = np.argsort(-logits.numpy(), axis=1)
    ranks = [list(row).index(t) for row, t in zip(order, targets.tolist(), strict=True)]
    batches = map(Batch, torch.zeros(50, 1).split(batch_size), targets.split(batch_size))
    measures = Classification().evaluate(Fixed(logits), batches).measures
    assert measures["top1"] == pytest.approx(100 * np.mean([rank == 0 for rank in ranks]))
    assert measures["top5"] == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))
    assert measures["images"] == 50


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_each_image_is_marked_right_or_wrong_in_the_data_sets_order(batch_size):
    logits, targets = torch.randn(50, 8), torch.randint(0, 8, (50,))
    batches = map(Batch, torch.zeros(50, 1).split(batch_size), targets.split(batch_size))
    found = Classification().evaluate(Fixed(logits), batches)
    expected = np.argmax(logits.numpy(), axis=1) == targets.numpy()
    assert found.correct.tolist() == expected.tolist()
    assert found.measures["correct"] == expected.sum()


class Third(SingleProcess):
    """One of three processes, which knows what the other two would have marked."""

    def __init__(self, others):
        super().__init__(torch.device("cpu"))
        self.others = others

    def all_gather_object(self, value):
        return [value, *self.others]


def test_marks_of_several_processes_are_put_in_order_though_some_have_no_last_part():
    # 7 images in batches of 6 and 1, spread over three processes: 2 + 2 + 2, then 0 + 0 + 1
    whole = np.array([True, False, True, True, False, False, True])
    others = [[whole[2:4]], [whole[4:6], whole[6:]]]
    logits = torch.where(torch.tensor(whole[:2])[:, None], torch.eye(2)[1], torch.eye(2)[0])
    batches = [Batch(torch.zeros(2, 1), torch.ones(2, dtype=torch.long))]
    found = Classification().evaluate(Fixed(logits), batches, Third(others))
    assert found.correct.tolist() == whole.tolist()


def test_fewer_than_five_classes_have_no_top5():
    batches = [Batch(torch.zeros(3, 1), torch.tensor([0, 1, 2]))]
    assert "top5" not in Classification().evaluate(Fixed(torch.randn(3, 4)), batches).measures


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_folder_gives_each_validation_image_once(folder, batch_size):
    images = image_folder(folder, TINY, batch_size)
    assert (images.images, images.classes) == (CLASSES * EACH, CLASSES)
    batches = list(images.batches)
    assert torch.cat([batch.labels for batch in batches]).tolist() == sorted(
        [*range(CLASSES)] * EACH
    )
    inputs = torch.cat([batch.inputs for batch in batches])
    assert inputs.shape == (CLASSES * EACH, 3, 224, 224)
    assert len({tuple(image[0, 0, :9].tolist()) for image in inputs}) == CLASSES * EACH


def test_folder_of_classes_needs_no_split(folder):
    assert image_folder(folder / "val", TINY).images == CLASSES * EACH


def test_images_are_transformed_as_timm_says_for_the_model(folder):
    """DeiT: resize to 248 (crop 0.9, bicubic), crop the centre, ImageNet's mean and deviation."""
    image = Image.open(folder / "val/class_0/0.png")  # 256 wide, 240 high
    resized = image.resize((248 * 256 // 240, 248), Image.Resampling.BICUBIC)
    left = (resized.width - 224) // 2
    pixels = np.asarray(resized.crop((left, 12, left + 224, 236))) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = next(iter(image_folder(folder, TINY, 1).batches))[0][0]
    assert np.abs(found.numpy() - expected.transpose(2, 0, 1)).max() < 0.03


def test_folders_without_images_to_evaluate_on_are_explained(tmp_path):
    with pytest.raises(UserError, match="none: no such folder"):
        image_folder(tmp_path / "none", TINY)
    with pytest.raises(UserError, match="Found 0 images"):
        image_folder(tmp_path, TINY)
    (tmp_path / "train/a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train/a/0.png")
    with pytest.raises(UserError, match="neither val/ nor validation/"):
        image_folder(tmp_path, TINY)


def test_model_that_timm_says_nothing_of_is_explained(folder):
    with pytest.raises(UserError, match=f"neither image size nor normalization of {MICRO}"):
        image_folder(folder, MICRO)


def test_unreadable_image_is_named_and_not_replaced_by_another(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    (tmp_path / "a/1.png").write_bytes(b"no image")
    images = image_folder(tmp_path, TINY)
    with pytest.raises(UserError) as caught:
        list(images.batches)
    assert str(caught.value) == f"{tmp_path / 'a/1.png'}: not a readable image"


def test_evaluation_stops_when_asked_to():
    stop = StopRequest()
    stop.cause = "SIGTERM"
    with pytest.raises(Interrupted, match="SIGTERM"):
        evaluation.evaluate(micro()[0], evaluation.in_memory(load("digits", MICRO, 0)), QUIET, stop)


def ofq_eval(weights, *arguments):
    return run_ofq(weights.parent, "eval", weights, "--bits", "W2A2", *arguments)


@pytest.mark.slow
def test_command_prints_what_the_model_gets(weights):
    model, data = micro()
    with torch.no_grad():
        right = (model.eval()(data.test_inputs).argmax(-1) == data.test_targets).sum().item()
    for batch_size in ("7", "900"):
        options = ("--model", MICRO, "--qkr", "--data", "digits", "--batch-size", batch_size)
        done = ofq_eval(weights, *options)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == "evaluating 900 images"
        assert lines[-2] == "image 900/900"
        assert lines[-1].startswith(f"top-1 {100 * right / 900:.2f} %  top-5 ")
        assert lines[-1].endswith(f"{right} of 900 images right")
        assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_terminal_gets_a_bar(weights):
    options = ("--model", MICRO, "--bits", "W2A2", "--qkr", "--data", "digits")
    process, main = start_in_terminal("eval", weights, *options)
    shown = read_terminal(main)
    assert process.wait() == 0
    assert "━" in shown
    assert "900/900" in shown


@pytest.mark.slow
def test_folder_is_evaluated_with_the_whole_model(folder, tmp_path):
    torch.manual_seed(0)
    model = ofq.quantize(models.build(TINY, CLASSES), 2, 2)
    ofq.calibrate(model, torch.randn(2, 3, 224, 224))
    path = tmp_path / "tiny.safetensors"
    save_weights(model, path)
    done = ofq_eval(path, "--model", TINY, "--data", str(folder), "--batch-size", "5")
    assert done.returncode == 0, done.stderr
    images = image_folder(folder, TINY, 12)
    expected = evaluation.evaluate(model, images, QUIET, StopRequest()).measures
    assert f"{expected['correct']} of {CLASSES * EACH} images right" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", MICRO, "--data", "digits"], "weights of another model"),  # without --qkr
        (["--model", MICRO, "--data", "none", "--qkr"], "none: no such folder"),
        (["--model", "deit_typo", "--data", "digits"], "unknown model 'deit_typo'"),
        (["--model", MICRO, "--data", "digits", "--bits", "W1A1"], "'W1A1'"),
        (["--model", MICRO, "--data", "digits", "--quantizer", "lsk"], "lsk"),
    ],
)
def test_mistake_is_one_clear_error(weights, options, words):
    done = ofq_eval(weights, *options)
    assert done.returncode == 2, done
    assert words in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
