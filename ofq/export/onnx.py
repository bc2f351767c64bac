"""ONNX files of models in memory."""

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ofq.atomic import write_file
from ofq.errors import UserError
from ofq.export.qdq import with_nodes
from ofq.quantization.convert import check_calibrated
from ofq.quantization.convolution import QuantizedConvolution
from ofq.quantization.layers import quantized_model
from ofq.quantization.settings import settings_of

OPSET = 21
"""ONNX opset: the first in which QuantizeLinear's output type needs no zero point."""

_PREPROCESSING = ("mean", "std", "crop_pct", "crop_mode", "interpolation")


def export_onnx(
    model: nn.Module,
    path: Path | str,
    *,
    images: Tensor | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a quantized model as an ONNX file; its input is ``images``, its output ``logits``.

    The file's metadata say how the model is quantized, and under ``preprocessing``, as JSON, how
    images become its input: ``input_size`` (channels, height, width), and, where they are known,
    ``mean`` and ``std`` by channel of values 0 to 1, ``crop_pct``, ``crop_mode`` and
    ``interpolation``, by timm's meaning of these words.

    Args:
        model: The calibrated or trained model that :func:`ofq.quantize` returned, also inside
            ``torch.compile`` or DistributedDataParallel; it is left unchanged.
        path: The file to write.
        images: Example input of two images or more, (B, channels, H, W), on the CPU; None for
            zeros of the size that the model was made for. The file accepts any number.
        preprocessing: What differs from timm's configuration of the model, by the names above
            except ``input_size``; a name with None is left out.
        metadata: Further metadata.

    Raises:
        UserError: A package of ``ofq[onnx]`` is missing; the model isn't quantized or calibrated;
            ONNX has no nodes for it; or the preprocessing is of other names or channels.
    """
    _require("onnx", "onnxscript")
    model = quantized_model(model)
    check_calibrated(model)
    settings = {key: str(value) for key, value in settings_of(model).plain().items() if value}
    images = _images(model) if images is None else images
    about = {
        **settings,
        "preprocessing": json.dumps(_preprocessing(model, images, preprocessing or {})),
        **(metadata or {}),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.onnx.export(
            with_nodes(model).cpu(),
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(about)
    write_file(Path(path), lambda to: program.save(to))


def _preprocessing(model: nn.Module, images: Tensor, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images become a model's input, as timm's configuration and changes have it."""
    if unknown := sorted(changes.keys() - set(_PREPROCESSING)):
        raise UserError(
            f"preprocessing: unknown name '{unknown[0]}'; allowed: {', '.join(_PREPROCESSING)}"
        )
    known = resolve_model_data_config(model) if getattr(model, "pretrained_cfg", None) else {}
    values = {key: known[key] for key in _PREPROCESSING if key in known} | dict(changes)
    size = list(images.shape[1:])
    for key in ("mean", "std"):
        numbers = values.get(key)
        if numbers is not None and len(numbers) not in (1, size[0]):
            if key in changes:
                raise UserError(
                    f"preprocessing: {key} has {len(numbers)} numbers, the images {size[0]} "
                    "channels; give one for each"
                )
            del values[key]  # timm's, of a model that was made for other channels
    return {"input_size": size} | {k: v for k, v in values.items() if v is not None}


def _images(model: nn.Module) -> Tensor:
    embedding = getattr(model, "patch_embed", None)
    if embedding is None:
        return _images_of_cnn(model)
    return torch.zeros(2, embedding.proj.in_channels, *embedding.img_size)


def _images_of_cnn(model: nn.Module) -> Tensor:
    """Return images of the size that timm's configuration of a convolutional network has."""
    first = next((m for m in model.modules() if isinstance(m, QuantizedConvolution)), None)
    if first is None:
        raise UserError("can't export to ONNX: the model takes no images")
    if not getattr(model, "pretrained_cfg", None):
        raise UserError(
            f"can't export to ONNX: the {type(model).__name__} doesn't say which size of images it "
            "takes; give two as `images`"
        )
    return torch.zeros(2, first.in_channels, *resolve_model_data_config(model)["input_size"][1:])


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"a file .onnx needs the packages {' and '.join(missing)}: pip install 'ofq[onnx]'"
        )
