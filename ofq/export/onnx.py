"""Export of finished runs as ONNX files."""

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import nn

from ofq.atomic import write_file
from ofq.config import Run, Workspace
from ofq.errors import UserError
from ofq.export.packed import finished
from ofq.export.qdq import with_nodes

OPSET = 21
"""ONNX opset: the first in which QuantizeLinear's output type needs no zero point."""


def export_onnx(workspace: Workspace, run: Run, path: Path) -> int:
    """Write a finished run's model as an ONNX file for images (batch, channels, height, width).

    Args:
        workspace: Workspace that contains the run.
        run: The run, of a quantized model.
        path: The file to write.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: As for :func:`ofq.export.packed.finished`; a package is missing; or ONNX has no
            nodes for the model.
    """
    _require("onnx", "onnxscript")
    result = finished(workspace, run)
    about = {"run": run.id, "model": run.config.model, **result.quantization.payload(brief=True)}
    metadata = {k: str(v) for k, v in about.items()}
    save_onnx(result.model, _images(result.unquantized), path, metadata)
    return path.stat().st_size


def save_onnx(model: nn.Module, images: torch.Tensor, path: Path, metadata: dict[str, str]) -> None:
    """Write a quantized model as an ONNX file; its input is ``images``, its output ``logits``.

    Args:
        model: The model, which is left unchanged.
        images: Example input of two images or more; the file accepts any number.
        path: The file to write.
        metadata: Metadata of the file.

    Raises:
        UserError: ONNX has no nodes for one of its weights.
    """
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
    program.model.metadata_props.update(metadata)
    write_file(path, lambda to: program.save(to))


def _images(unquantized: nn.Module) -> torch.Tensor:
    embedding = getattr(unquantized, "patch_embed", None)
    if embedding is None:
        raise UserError("can't export to ONNX: the model takes no images")
    return torch.zeros(2, embedding.proj.in_channels, *embedding.img_size)


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"a file .onnx needs the packages {' and '.join(missing)}: pip install 'ofq[onnx]'"
        )
