"""Export of finished runs as files of packed weights or ONNX, by :mod:`ofq.export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ofq.config import Quantization, Run, Workspace
from ofq.config.images import Images
from ofq.config.modules import import_modules
from ofq.config.run import FullPrecisionRun, PretrainedRun, TrainedRun, training_of
from ofq.errors import UserError
from ofq.export.onnx import export_onnx
from ofq.export.packed import save_packed
from ofq.models.loading import fit_weights
from ofq.runs.attempt import run_folder
from ofq.runs.folder import PACKED, WEIGHTS
from ofq.training import models
from ofq.training.data.augmentation import evaluation_settings
from ofq.training.data.source import normalization
from ofq.training.weights import read_weights

_HEADS = ("head.weight", "head.fc.weight")


@dataclass(frozen=True)
class Exported:
    """Packed file of a run.

    Attributes:
        path: Path of the file.
        size: Its size in bytes.
        full_precision: Size in bytes of the full-precision model's weights.
    """

    path: Path
    size: int
    full_precision: int


@dataclass(frozen=True)
class Finished:
    """Model of a finished run.

    Attributes:
        model: The quantized model, with the run's weights.
        unquantized: The full-precision model, with initial weights.
        classes: Number of their classes.
        model_args: Further arguments of their constructor.
        quantization: Quantization of the model.
    """

    model: nn.Module
    unquantized: nn.Module
    classes: int
    model_args: dict[str, bool | int | float | str]
    quantization: Quantization


def finished(workspace: Workspace, run: Run) -> Finished:
    """Load the quantized model of a finished run.

    Args:
        workspace: Workspace that contains the run.
        run: The run.

    Raises:
        UserError: The run is of a full-precision model or isn't finished, or its weights are
            missing or damaged.
    """
    config, folder = run.config, run_folder(workspace, run)
    workspace.refuse_bundle("export")
    import_modules(config)
    if isinstance(config, FullPrecisionRun | PretrainedRun):
        raise UserError(f"{run.id} is a full-precision run, which has no codes to pack")
    if folder.is_record():
        raise UserError(f"{folder.path}: a record without weights, as in an unpacked bundle")
    if not folder.complete():
        raise UserError(f"{run.id} isn't finished, it is {folder.state()}; `ofq train {run.id}`")
    folder.verify(WEIGHTS)
    weights = folder.path / WEIGHTS
    tensors = read_weights(weights)
    classes = _classes(tensors)
    unquantized = models.build(config.model, classes, args=config.constructor_args)
    model = fit_weights(models.quantized(unquantized, config.quantization), tensors, weights)
    return Finished(model, unquantized, classes, config.constructor_args, config.quantization)


def export_run(workspace: Workspace, run: Run, path: Path) -> Exported:
    """Write a finished run's model with packed weights, and record its size in the run folder.

    Args:
        workspace: Workspace that contains the run.
        run: The run, of a quantized model.
        path: The file to write.

    Raises:
        UserError: As for :func:`finished`, or its weight quantizer can't be exported.
    """
    result = finished(workspace, run)
    save_packed(result.model, path, name=run.config.model, model_args=result.model_args)
    state = result.unquantized.state_dict()
    full_precision = sum(t.numel() * t.element_size() for t in state.values())
    size = path.stat().st_size
    sizes = {"packed_bytes": size, "full_precision_bytes": full_precision}
    run_folder(workspace, run).write_json(PACKED, sizes)
    return Exported(path, size, full_precision)


def export_onnx_run(workspace: Workspace, run: Run, path: Path) -> int:
    """Write a finished run's model as an ONNX file for images (batch, channels, height, width).

    Args:
        workspace: Workspace that contains the run.
        run: The run, of a quantized model.
        path: The file to write.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: As for :func:`finished` and :func:`ofq.export.onnx.export_onnx`.
    """
    result = finished(workspace, run)
    export_onnx(
        result.model,
        path,
        preprocessing=_preprocessing(run, result.classes),
        metadata={"run": run.id, "model": run.config.model},
    )
    return path.stat().st_size


def _preprocessing(run: Run, classes: int) -> dict[str, Any]:
    """Return how the run's evaluation makes its model's input of images, where that is known."""
    config = run.config
    if config.data.source != "images":
        nothing = dict.fromkeys(("mean", "std", "crop_pct", "crop_mode", "interpolation"))
        return nothing | normalization(config.data)
    if isinstance(config, TrainedRun):
        images: Images | None = config.training.images or Images()
    else:
        training = training_of(run.parent.config) if run.parent else None
        images = training.images if training else None
    settings = evaluation_settings(
        config.model, classes, images, config.constructor_args, config.data
    )
    del settings["input_size"]  # the model's own
    return settings


def _classes(weights: dict[str, Tensor]) -> int:
    return next((len(weights[name]) for name in _HEADS if name in weights), 0)
