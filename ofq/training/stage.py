"""From a run's config and its parents' weights to a trainer that is ready to run."""

from pathlib import Path

import torch
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from ofq.interruption import StopRequest
from ofq.quantization import calibrate, set_gradient_batch
from ofq.study import RunConfig
from ofq.study.config import HUB
from ofq.study.stage import split
from ofq.training import models
from ofq.training.checkpoint import CheckpointStore
from ofq.training.data import Data, load
from ofq.training.devices import ALONE, Solo, seed_everything
from ofq.training.loop import Observer, Trainer
from ofq.training.objective import objective
from ofq.training.pace import Pace
from ofq.training.stepping import make_stepper
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

    Raises:
        UserError: The data, the model, or weights that it starts from can't be had, or the batch
            can't be split over the devices.
    """
    seed_everything(config.seed)
    training = config.training
    assert training is not None
    parts = split(training.batch_size, process.count, device_batch)
    data = load(config.dataset, config.model, config.seed).to(process.device)
    model = _initial_model(config, data, parent, pretrained, process.device)
    set_gradient_batch(model, counted=training.batch_size, per_pass=parts.images)
    process.align(model)
    taught_by = None
    if training.distillation:
        taught_by = _full_precision(config, data, teacher or pretrained).to(process.device)
        if isinstance(model, VisionTransformerDistilled):
            model.set_distilled_training(True)  # both heads' logits, each for its own term
    process.diverge(config.seed)
    return Trainer(
        model,
        data,
        objective(data, taught_by),
        training,
        make_stepper(config, model),
        observer,
        checkpoints,
        stop,
        config.scale_lr,
        pace,
        process,
        parts.passes,
    )


def _full_precision(config: RunConfig, data: Data, weights: Path | None) -> nn.Module:
    """The full-precision model with the given weights, else the hub's, else fresh ones."""
    if weights is None and config.pretrained == HUB:
        return models.from_hub(config.model, data.classes)
    model = models.build(config.model, data.classes)
    return model if weights is None else load_weights(model, weights)


def _initial_model(
    config: RunConfig,
    data: Data,
    parent: Path | None,
    pretrained: Path | None,
    device: torch.device,
) -> nn.Module:
    """The model as it is before the stage's first step, on a device.

    Calibration takes the whole first batch on each device: the same for any number of them.
    """
    if config.stage == "cga":
        assert parent is not None
        model = models.build(config.model, data.classes)
        return load_weights(models.quantized(model, config.quantization), parent).to(device)
    model = _full_precision(config, data, parent or pretrained).to(device)
    if config.stage == "fp":
        return model
    assert config.training is not None
    model = models.quantized(model, config.quantization)
    images, _ = next(data.train_batches(0, config.training.batch_size))
    calibrate(model, images)
    return model
