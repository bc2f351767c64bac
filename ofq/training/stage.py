"""From a run's config and its parents' weights to a trainer that is ready to run."""

from pathlib import Path

import torch
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from ofq.errors import UserError
from ofq.interruption import StopRequest
from ofq.quantization import calibrate, set_gradient_batch
from ofq.study import RunConfig
from ofq.study.config import HUB
from ofq.study.images import Images
from ofq.study.stage import Split, split
from ofq.training import models
from ofq.training.checkpoint import CheckpointStore
from ofq.training.data import Data, Source, load
from ofq.training.devices import ALONE, Solo, seed_everything
from ofq.training.images import Files, ImageData, open_images
from ofq.training.loop import Observer, Trainer
from ofq.training.objective import (
    Classification,
    Distillation,
    KeptDistillation,
    Objective,
    Regression,
)
from ofq.training.pace import Pace
from ofq.training.stepping import make_stepper
from ofq.training.teacher import Teacher, kept_answers
from ofq.training.weights import load_weights


def prepare(
    config: RunConfig,
    parent: Path | None,
    teacher: Path | None,
    observer: Observer,
    checkpoints: CheckpointStore,
    stop: StopRequest,
    pretrained: Path | None = None,
    pace: Pace | None = None,
    process: Solo = ALONE,
    device_batch: int | None = None,
    compiled: bool = False,
    files: Files | None = None,
    answers: Path | None = None,
) -> Trainer:
    """Build the trainer of a run.

    Args:
        config: The run's config.
        parent: Weights of the run that this one starts from.
        teacher: Weights of the full-precision run that teaches.
        observer: Who hears of it.
        checkpoints: Where state is kept.
        stop: Looked at after every step.
        pretrained: The file that ``config.pretrained`` names, if it names one.
        pace: When to save, and when to leave.
        process: This process among those of the run.
        device_batch: The most images in one pass on one device; None for any number.
        compiled: Whether the steps are compiled.
        files: Where a data set of image files lies; None for one that comes with the package.
        answers: The file that keeps the teacher's answers, where the config wants them kept.

    Raises:
        UserError: The data, the model, or weights that it starts from can't be had, the batch
            can't be split over the devices, or nothing can be compiled here.
        Interrupted: A stop is requested while the teacher's answers are made.
    """
    seed_everything(config.seed)
    training = config.training
    assert training is not None
    parts = split(training.batch_size, process.count, device_batch)
    data = _data(config, files, parts).to(process.device)
    model = _initial_model(config, data, parent, pretrained, process.device)
    counted = training.gradient_batch or training.batch_size
    set_gradient_batch(model, counted=counted, per_pass=parts.images)
    process.align(model)
    if training.distillation and isinstance(model, VisionTransformerDistilled):
        model.set_distilled_training(True)  # both heads' logits, each for its own term
    weights = teacher or pretrained
    seen, aim = _objective(config, data, weights, answers, process, compiled, stop)
    process.diverge(config.seed)
    return Trainer(
        model,
        seen,
        aim,
        training,
        make_stepper(config, model, compiled),
        observer,
        checkpoints,
        stop,
        config.scale_lr,
        pace,
        process,
        parts.passes,
        compiled,
    )


def _data(config: RunConfig, files: Files | None, parts: Split) -> Data | ImageData:
    if files is None:
        return load(config.dataset, config.model, config.seed)
    assert config.training is not None
    images = config.training.images or Images()
    if images.mixing is not None and parts.images % 2:
        raise UserError(
            f"images.mixing mixes pairs, but {parts}; allowed: an even number of images in a pass"
        )
    return open_images(files, images, config.model, config.seed)


def _objective(
    config: RunConfig,
    data: Data | ImageData,
    weights: Path | None,
    answers: Path | None,
    process: Solo,
    compiled: bool,
    stop: StopRequest,
) -> tuple[Source, Objective]:
    """What is minimized; and the data, with a teacher's answers where they are kept."""
    assert config.training is not None
    if data.classes == 0:
        return data, Regression()
    if not config.training.distillation:
        return data, Classification()
    wanted = config.training.teacher
    model = full_precision(config, data.classes, weights).to(process.device)
    if not wanted.cached:
        # on the CPU a model in full precision gains nothing by it
        recorded = compiled and process.device.type == "cuda"
        return data, Distillation(Teacher(model, wanted.precision, recorded))
    assert answers is not None
    teacher = Teacher(model, wanted.precision)
    logits = kept_answers(answers, teacher, data, process, stop)
    return data.taught(logits), KeptDistillation()


def full_precision(config: RunConfig, classes: int, weights: Path | None) -> nn.Module:
    """The full-precision model with the given weights, else the hub's, else fresh ones.

    Args:
        config: The run's config.
        classes: Number of classes.
        weights: A file of weights.

    Raises:
        UserError: The weights can't be had, or don't fit the model.
    """
    drop_path = _drop_path(config)
    if weights is None and config.pretrained == HUB:
        return models.from_hub(config.model, classes, drop_path)
    model = models.build(config.model, classes, drop_path)
    return model if weights is None else load_weights(model, weights)


def _drop_path(config: RunConfig) -> float:
    return config.training.drop_path if config.training else 0.0


def trained(config: RunConfig, classes: int, weights: Path) -> nn.Module:
    """The quantized model with the weights of a training that has ended.

    Args:
        config: The config of that run, or of one that builds on it.
        classes: Number of classes.
        weights: The run's weights.

    Raises:
        UserError: They can't be read, or don't fit the model.
    """
    model = models.build(config.model, classes, _drop_path(config))
    return load_weights(models.quantized(model, config.quantization), weights)


def _initial_model(
    config: RunConfig,
    data: Source,
    parent: Path | None,
    pretrained: Path | None,
    device: torch.device,
) -> nn.Module:
    """The model as it is before the stage's first step, on a device.

    Calibration takes the whole first batch on each device: the same for any number of them.
    """
    if config.stage == "cga":
        assert parent is not None
        return trained(config, data.classes, parent).to(device)
    model = full_precision(config, data.classes, parent or pretrained).to(device)
    if config.stage == "fp":
        return model
    assert config.training is not None
    model = models.quantized(model, config.quantization)
    images, _ = next(data.train_batches(0, config.training.batch_size))
    calibrate(model, images)
    return model
