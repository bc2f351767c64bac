"""From a run's config and its parents' weights to a trainer that is ready to run."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ofq.errors import UserError
from ofq.quantization import calibrate
from ofq.study import RunConfig
from ofq.training import models
from ofq.training.checkpoint import CheckpointStore
from ofq.training.data import Data, load
from ofq.training.interruption import StopRequest
from ofq.training.loop import Observer, Trainer, seed_everything
from ofq.training.objective import objective
from ofq.training.stepping import make_stepper


def prepare(
    config: RunConfig,
    parent: Path | None,
    teacher: Path | None,
    observer: Observer,
    checkpoints: CheckpointStore,
    stop: StopRequest,
) -> Trainer:
    """Build the trainer of a run.

    Args:
        config: The run's config.
        parent: Weights of the run that this one starts from.
        teacher: Weights of the full-precision run that teaches.
        observer: Who hears of it.
        checkpoints: Where state is kept.
        stop: Looked at after every step.

    Raises:
        UserError: The data, the model or a parent's weights can't be had.
    """
    seed_everything(config.seed)
    data = load(config.dataset, config.model, config.seed)
    model = _initial_model(config, data, parent)
    taught_by = None
    if teacher is not None:
        taught_by = load_weights(models.build(config.model, data.classes), teacher)
    return Trainer(
        model,
        data,
        objective(data, taught_by),
        config.training,
        make_stepper(config, model),
        observer,
        checkpoints,
        stop,
        config.scale_lr,
    )


def _initial_model(config: RunConfig, data: Data, parent: Path | None) -> nn.Module:
    """The model as it is before the stage's first step."""
    model = models.build(config.model, data.classes)
    if config.stage == "cga":
        assert parent is not None
        return load_weights(models.quantized(model, config), parent)
    if parent is not None:
        load_weights(model, parent)
    if config.stage == "fp":
        return model
    model = models.quantized(model, config)
    images, _ = next(data.train_batches(0, config.training.batch_size))
    calibrate(model, images)
    return model


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load safetensors weights into a model, strictly.

    Raises:
        UserError: The file is missing, damaged, or of another model.
    """
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the run that makes it first") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None
    expected = model.state_dict().keys()
    odd = sorted(expected ^ weights.keys())
    if odd:
        where = "the file lacks" if odd[0] in expected else "the model has no"
        raise UserError(
            f"{path}: weights of another model: {where} {odd[0]}, and {len(odd)} in all"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{path}: weights of another model: {first}") from None
    return model


def save_weights(model: nn.Module, path: Path) -> None:
    """Save a model's weights as safetensors."""
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)


def use_threads(count: int) -> None:
    """Let torch compute with this many threads; the number decides the last bits of sums."""
    torch.set_num_threads(count)
