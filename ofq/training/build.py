"""Construction of a trainer from a run's config and its parents' weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from ofq.config.images import Images
from ofq.config.method import Annealing, QatTechnique
from ofq.config.modules import import_modules
from ofq.config.run import (
    CgaRun,
    FullPrecisionRun,
    NoiseRun,
    PretrainedRun,
    QatRun,
    QuantizedTraining,
    TrainedRun,
    training_of,
)
from ofq.config.schema import HUB
from ofq.config.stage import Split, check_pairs, split
from ofq.errors import UserError
from ofq.quantization import Technique, calibrate, make_technique, set_gradient_batch
from ofq.training import models
from ofq.training.data.images import ImageData, ImageSource, open_images
from ofq.training.data.source import Data, Source, load
from ofq.training.distributed import seed_everything
from ofq.training.objective import Classification, Distillation, Objective, Regression
from ofq.training.teacher import Teacher, cached_teacher_logits
from ofq.training.trainer import GraphedTrainer, Session, Trainer
from ofq.training.weights import load_weights


@dataclass(frozen=True)
class Inputs:
    """Files that a run starts from.

    Attributes:
        parent: Weights of the run that this one starts from.
        teacher: Weights of the full-precision run that is the teacher.
        pretrained: The file that the config's ``pretrained`` names.
        teacher_logits: The file of cached teacher logits, if the config wants them cached; created
            if it doesn't exist.
        data: Path that in-memory data are read from.
        tracker: The oscillation tracker's history at the end of the stage before this one.
    """

    parent: Path | None = None
    teacher: Path | None = None
    pretrained: Path | None = None
    teacher_logits: Path | None = None
    data: Path | None = None
    tracker: Path | None = None


def build(
    config: TrainedRun,
    inputs: Inputs,
    session: Session,
    *,
    files: ImageSource | None = None,
    device_batch: int | None = None,
    compiled: bool = False,
) -> Trainer:
    """Build the trainer of a run: data, model, objective, techniques, in this order.

    Args:
        config: The run's config.
        inputs: The files that it starts from.
        session: Observer, checkpoints, stop request, pace and process group.
        files: The data set of image files; None for in-memory data.
        device_batch: Most images in one pass on one device; None for any number.
        compiled: Whether to compile the steps, and on a GPU to capture them as CUDA graphs.

    Raises:
        UserError: The data, the model or its initial weights are missing or invalid, the batch
            can't be split over the devices, or compilation isn't possible here.
        Interrupted: A stop is requested while the teacher logits are computed.
    """
    import_modules(config)
    seed_everything(config.seed)
    training, group = config.training, session.group
    parts = split(training.batch_size, group.count, device_batch)
    data = _data(config, inputs, files, parts).to(group.device)

    model = _initial_model(config, data, inputs, group.device)
    counted = training.gradient_batch or training.batch_size
    set_gradient_batch(model, counted=counted, per_pass=parts.images)
    group.broadcast_parameters(model)
    if training.distillation and isinstance(model, VisionTransformerDistilled):
        model.set_distilled_training(True)  # returns both heads' logits, each for its own term

    teacher = _teacher(config, data.classes, inputs, group.device, compiled)
    if teacher is not None and training.teacher.cached:
        assert inputs.teacher_logits is not None
        logits = cached_teacher_logits(inputs.teacher_logits, teacher, data, group, session.stop)
        source: Source = data.with_teacher_logits(logits)
        objective: Objective = Distillation(None)
    else:
        source, objective = data, _objective(data.classes, teacher)

    techniques = make_techniques(config, model)
    group.seed_per_rank(config.seed)
    captured = compiled and group.device.type == "cuda"
    kind = GraphedTrainer if captured and all(t.capturable for t in techniques) else Trainer
    trainer = kind(
        model,
        source,
        objective,
        techniques,
        training,
        session,
        scale_lr=config.scale_lr if isinstance(config, QuantizedTraining) else 1.0,
        passes=parts.passes,
        compiled=compiled,
    )
    if inputs.tracker is not None and trainer.tracker is not None:
        try:
            trainer.tracker.go_on_from(load_file(inputs.tracker))
        except UserError as error:
            raise UserError(f"{inputs.tracker}: {error}") from None
    return trainer


def make_techniques(config: TrainedRun, model: nn.Module) -> list[Technique]:
    """Create the techniques of a run's config.

    Args:
        config: The run's config.
        model: The model, calibrated or loaded.
    """
    configs: tuple[QatTechnique | Annealing, ...] = ()
    if isinstance(config, QatRun):
        configs = config.techniques
    elif isinstance(config, CgaRun):
        configs = (config.annealing,)
    return [make_technique(each.technique, model, each.options()) for each in configs]


def _data(
    config: TrainedRun, inputs: Inputs, files: ImageSource | None, parts: Split
) -> Data | ImageData:
    if files is None:
        return load(config.dataset, config.model, config.seed, config.data, inputs.data)
    images = config.training.images or Images()
    check_pairs(config.training, parts)
    return open_images(
        files, images, config.model, config.seed, config.constructor_args, config.data
    )


def _objective(classes: int, teacher: Teacher | None) -> Objective:
    if classes == 0:
        return Regression()
    return Classification() if teacher is None else Distillation(teacher)


def _teacher(
    config: TrainedRun, classes: int, inputs: Inputs, device: torch.device, compiled: bool
) -> Teacher | None:
    """Return the full-precision teacher; None without distillation."""
    if classes == 0 or not config.training.distillation:
        return None
    weights = inputs.teacher or inputs.pretrained
    model = full_precision(config, classes, weights).to(device)
    # on a CPU, capturing a full-precision model gains nothing
    captured = compiled and device.type == "cuda" and not config.training.teacher.cached
    return Teacher(model, config.training.teacher.precision, captured)


def full_precision(
    config: TrainedRun | PretrainedRun, classes: int, weights: Path | None
) -> nn.Module:
    """Build the full-precision model with the given weights, else the hub's, else fresh ones.

    Args:
        config: The run's config.
        classes: Number of classes.
        weights: A file of weights.

    Raises:
        UserError: The weights can't be read or downloaded, or don't fit the model.
    """
    training = training_of(config)
    drop_path = training.drop_path if training else 0.0
    if weights is None and getattr(config, "pretrained", None) == HUB:
        return models.from_hub(config.model, classes, drop_path, config.constructor_args)
    model = models.build(config.model, classes, drop_path, config.constructor_args)
    return model if weights is None else load_weights(model, weights)


def trained(config: QuantizedTraining | NoiseRun, classes: int, weights: Path) -> nn.Module:
    """Build the quantized model with the weights of a finished training.

    Args:
        config: The config of that run, or of one that builds on it.
        classes: Number of classes.
        weights: The run's weights.

    Raises:
        UserError: The weights can't be read, or don't fit the model.
    """
    training = training_of(config)
    model = models.build(
        config.model,
        classes,
        training.drop_path if training else 0.0,
        config.constructor_args,
    )
    return load_weights(models.quantized(model, config.quantization), weights)


def _initial_model(
    config: TrainedRun, data: Source, inputs: Inputs, device: torch.device
) -> nn.Module:
    """Build the model as it is before the stage's first step, on a device.

    Each rank calibrates on the whole first batch, so the scales don't depend on their number.
    """
    if isinstance(config, CgaRun):
        assert inputs.parent is not None
        return trained(config, data.classes, inputs.parent).to(device)
    weights = inputs.parent or inputs.pretrained
    model = full_precision(config, data.classes, weights).to(device)
    if isinstance(config, FullPrecisionRun):
        return model
    model = models.quantized(model, config.quantization)
    calibrate(model, next(data.train_batches(0, config.training.batch_size)).inputs)
    return model
