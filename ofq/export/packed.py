"""Export of finished runs as files of packed weights, and loading of such files.

A packed file is a safetensors file. A quantized weight ``W`` of shape (rows, ...) is stored as two
tensors: ``W.codes``, its integer codes in the layout of :func:`ofq.export.codes.pack`, and
``W.scale``, float32, a scale per row. All other tensors are stored unchanged. The metadata contain
:class:`Contents` as JSON under ``ofq``, and a SHA-256 of contents and tensors under ``sha256``.
"""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ofq.atomic import write_file
from ofq.config import Quantization, Run, Workspace
from ofq.config.fields import ModelArgs, Name
from ofq.config.files import Strict, parse, read_json
from ofq.config.modules import import_modules
from ofq.config.run import FullPrecisionRun, PretrainedRun
from ofq.console import printable
from ofq.errors import UserError
from ofq.export.codes import PackedWeight, hold_weights, pack_weights
from ofq.quantization.quantizers.base import weight_quantizers
from ofq.runs.attempt import run_folder
from ofq.runs.folder import PACKED, WEIGHTS
from ofq.training import models
from ofq.training.weights import fit_weights, read_weights, safetensors_bytes

_CONTENTS, _HASH = "ofq", "sha256"
_HEADS = ("head.weight", "head.fc.weight")
_LONGEST = 2**18  # characters of a file's metadata
_SHOWN = 1000  # characters of a message
_SLACK = 2  # largest ratio of weights of a model to numbers in its file
_IMPOSSIBLE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""Exceptions of torch and timm for impossible contents of a file, such as 2^70 classes."""


class Form(Strict):
    """Description of a packed weight, in addition to its tensors.

    Attributes:
        layer: Name of the layer whose ``weight`` it is.
        quantizer: Registered name of its quantizer.
        bits: Bits per code.
        shape: Shape of the weight.
    """

    layer: str
    quantizer: str
    bits: int
    shape: tuple[int, ...]


class Contents(Strict):
    """Metadata of a packed file.

    Attributes:
        format: Version of the layout.
        model: Name of the full-precision model.
        classes: Number of its classes; 0 for a model without a head.
        model_args: Further arguments of its constructor.
        quantization: Its quantization, without the module that registers the quantizer: loading a
            file ignores a module that the file names, rather than import it.
        weights: The packed weights.
    """

    format: Literal[1] = 1
    model: Name
    classes: int = Field(ge=0)
    model_args: ModelArgs = Field(default_factory=dict)
    quantization: Quantization
    weights: tuple[Form, ...]


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
    save_packed(
        result.model,
        run.config.model,
        result.classes,
        result.quantization,
        path,
        model_args=result.model_args,
    )
    state = result.unquantized.state_dict()
    full_precision = sum(t.numel() * t.element_size() for t in state.values())
    size = path.stat().st_size
    sizes = {"packed_bytes": size, "full_precision_bytes": full_precision}
    run_folder(workspace, run).write_json(PACKED, sizes)
    return Exported(path, size, full_precision)


def _classes(weights: dict[str, Tensor]) -> int:
    return next((len(weights[name]) for name in _HEADS if name in weights), 0)


def save_packed(
    model: nn.Module,
    name: str,
    classes: int,
    quantization: Quantization,
    path: Path,
    *,
    model_args: Mapping[str, bool | int | float | str] | None = None,
) -> None:
    """Write a quantized model with packed weights.

    Args:
        model: The model, which is left unchanged.
        name: Name of the full-precision model.
        classes: Number of its classes.
        quantization: Its quantization.
        path: The file to write.
        model_args: Further arguments of the model's constructor.

    Raises:
        UserError: A weight quantizer's decoded codes don't equal its quantized weight.
    """
    packed = pack_weights(model)
    tensors = hold_weights(copy.deepcopy(model), packed).state_dict()
    for layer, weight in packed.items():
        del tensors[f"{layer}.weight"]
        tensors[f"{layer}.weight.codes"] = weight.codes
        tensors[f"{layer}.weight.scale"] = weight.scale
    tensors = {n: t.cpu().contiguous() for n, t in tensors.items()}
    contents = Contents(
        model=name,
        classes=classes,
        model_args=dict(model_args or {}),
        quantization=quantization.model_copy(update={"module": None}),
        weights=tuple(
            Form(layer=layer, quantizer=w.quantizer, bits=w.bits, shape=w.shape)
            for layer, w in packed.items()
        ),
    )
    text = contents.model_dump_json()
    metadata = {"format": "pt", _CONTENTS: text, _HASH: _sha256(text, tensors)}
    # written by Python, whose errors tell what is wrong with the disk
    write_file(path, lambda to: to.write_bytes(safetensors_bytes(tensors, metadata)))


def load_packed(path: Path) -> nn.Module:
    """Load the model of a packed file, in eval mode.

    Its logits equal those of the exported fake-quantized model exactly on the same machine. On
    another processor, which may round an elementwise product and sum differently, the last bit of a
    weight can differ. The model holds only quantized weights and can't be trained further.

    Args:
        path: A file written by ``ofq export``. A weight quantizer from outside this package must be
            registered first, by importing its module.

    Raises:
        UserError: The file is missing or damaged, isn't a packed file, or can't be rebuilt here:
            its quantizer isn't registered, or its parts fit no model.
    """
    contents, tensors = _read(path)
    try:
        _check_quantizer(contents.quantization)
        packed = _take_packed(contents, tensors)
        _check_size(contents, tensors, packed)
        unquantized = models.build(contents.model, contents.classes, args=contents.model_args)
        quantization = contents.quantization.model_copy(update={"module": None})
        model = hold_weights(models.quantized(unquantized, quantization), packed)
        own = model.state_dict()
        _check_types(tensors, own)
        tensors |= {name: own[name] for name in (f"{layer}.weight" for layer in packed)}
        return fit_weights(model, tensors, path).eval()
    except UserError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: {printable(text)[:_SHOWN]}") from None
    except _IMPOSSIBLE as error:
        raise UserError(
            f"{path}: no model can be rebuilt from it: {printable(error)[:_SHOWN]}"
        ) from None


def _check_quantizer(quantization: Quantization) -> None:
    """Refuse a weight quantizer that isn't registered, rather than import the module a file names.

    Raises:
        UserError: It isn't registered.
    """
    name, module = quantization.weight_quantizer, quantization.module
    if name not in weight_quantizers:
        named = f" ('{printable(module)}', the file says)" if module else ""
        raise UserError(
            f"weight quantizer '{name}' isn't registered: import the module that registers it"
            f"{named} before load_packed, which imports nothing that a file names"
        )


def _take_packed(contents: Contents, tensors: dict[str, Tensor]) -> dict[str, PackedWeight]:
    """Remove the packed weights from a file's tensors and return them by layer."""
    packed: dict[str, PackedWeight] = {}
    for form in contents.weights:
        parts = [f"{form.layer}.weight.{part}" for part in ("codes", "scale")]
        if missing := [name for name in parts if name not in tensors]:
            raise UserError(f"lacks {missing[0]}, or has two weights of {form.layer}")
        codes, scale = (tensors.pop(name) for name in parts)
        packed[form.layer] = PackedWeight(form.quantizer, form.bits, form.shape, codes, scale)
    return packed


def _check_size(
    contents: Contents, tensors: dict[str, Tensor], packed: dict[str, PackedWeight]
) -> None:
    """Refuse to build a model that is much larger than the contents of its file.

    Under QKR a file has more codes than its model has weights, but never far fewer.
    """
    depth = contents.model_args.get("depth", 0)
    if isinstance(depth, int) and depth > len(tensors) + len(packed):  # slow to build, even so
        raise UserError(
            f"holds {len(tensors) + len(packed):,} tensors, too few for {depth:,} blocks"
        )
    with torch.device("meta"):
        model = models.build(contents.model, contents.classes, args=contents.model_args)
    needed = sum(parameter.numel() for parameter in model.parameters())
    codes = sum(8 * weight.codes.numel() // max(1, weight.bits) for weight in packed.values())
    held = codes + sum(tensor.numel() for tensor in tensors.values())
    if needed > _SLACK * held:
        raise UserError(
            f"holds {held:,} numbers, but {contents.model} with {contents.classes} classes has "
            f"{needed:,} weights"
        )


def _check_types(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuse tensors that loading would convert, and empty ones, which later inputs would set."""
    for name, tensor in tensors.items():
        if name in own and tensor.dtype != own[name].dtype:
            raise UserError(f"{name} is {tensor.dtype}, not {own[name].dtype}")
        if name in own and not tensor.numel():
            raise UserError(f"{name} is empty")


def _read(path: Path) -> tuple[Contents, dict[str, Tensor]]:
    """Read a packed file's contents and tensors, and verify their hash."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            text = metadata.get(_CONTENTS, "")
            if len(text) > _LONGEST:
                raise SafetensorError(f"metadata of {len(text):,} characters")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError, *_IMPOSSIBLE) as error:
        raise UserError(f"{path}: not a readable safetensors file: {printable(error)}") from None
    if not text:
        raise UserError(f"{path}: its weights aren't packed; `ofq export RUN` writes packed files")
    if metadata.get(_HASH) != _sha256(text, tensors):
        raise UserError(f"{path}: damaged: its contents don't match its SHA-256; export it again")
    source = f"{path}: metadata '{_CONTENTS}'"
    try:
        return parse(Contents, read_json(text, source), source), tensors
    except UserError as error:  # a program wrote the file, so one mistake is enough to report
        raise UserError(printable(str(error).partition("\n")[0])[:_SHOWN]) from None


def _sha256(contents: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of contents, then of tensors by name, each with name, type and shape."""
    digest = hashlib.sha256(contents.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
