"""A process that loads images is killed while a model is evaluated."""

import os
import signal
import subprocess
import sys

import numpy
import pytest
import torch
from PIL import Image

from ofq.config import Quantization
from ofq.quantization import calibrate
from ofq.training import models
from ofq.training.weights import save_weights

pytestmark = [pytest.mark.faults, pytest.mark.slow]

MODEL = "deit_tiny_patch16_224"


@pytest.fixture
def images(tmp_path):
    """Noise as ImageNet lies in folders: enough of it to be interrupted."""
    dice = numpy.random.default_rng(0)
    for label in ("a", "b"):
        folder = tmp_path / "images" / "val" / label
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = dice.integers(0, 256, (256, 256, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpeg")
    return tmp_path / "images"


@pytest.fixture
def weights(tmp_path):
    wanted = Quantization(bits="W2A2", weight_quantizer="statsq")
    model = models.quantized(models.build(MODEL, 2), wanted)
    calibrate(model, torch.rand(2, 3, 224, 224))
    save_weights(model, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def start(images, weights):
    command = [sys.executable, "-m", "ofq", "eval", str(weights), "--model", MODEL]
    command += ["--bits", "W2A2", "--data", str(images), "--batch-size", "4"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def loading(process):
    """The loading processes, once they have delivered images."""
    for line in process.stdout:
        if line.startswith("image "):
            return workers(process.pid)
    pytest.fail("the evaluation ended before it began")


def test_killed_loader_is_named_and_the_command_can_be_repeated(images, weights):
    process = start(images, weights)
    os.kill(loading(process)[0], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert "a process that loads images was killed" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_loader_leaves_signals_to_the_trainer(images, weights, number):
    """As those that a scheduler sends to all processes of a job, which the trainer answers."""
    process = start(images, weights)
    for worker in loading(process):
        os.kill(worker, number)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "of 120 images right" in output
