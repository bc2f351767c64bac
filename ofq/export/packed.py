"""Files of packed weights of models in memory, and models from such files.

A packed file is a safetensors file. A quantized weight ``W`` of shape (rows, ...) is stored as two
tensors: ``W.codes``, its integer codes in the layout of :func:`ofq.export.codes.pack`, and
``W.scale``, float32, a scale per row. All other tensors are stored unchanged. The metadata contain
:class:`ofq.export.contents.Contents` as JSON under ``ofq``, and a SHA-256 of contents and tensors
under ``sha256``.
"""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ofq.atomic import write_file
from ofq.console import printable
from ofq.errors import UserError, some
from ofq.export.codes import PackedWeight, hold_weights, pack_weights
from ofq.export.contents import Argument, Contents, Form, own_modules, read_contents
from ofq.models import building
from ofq.models.loading import fit_weights, safetensors_bytes
from ofq.quantization.convert import check_calibrated
from ofq.quantization.layers import quantized_model
from ofq.quantization.settings import settings_of

_CONTENTS, _HASH = "ofq", "sha256"
_LONGEST = 2**18  # characters of a file's metadata
_SHOWN = 1000  # characters of a message
_SLACK = 2  # largest ratio of weights of a model to numbers in its file
_IMPOSSIBLE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""Exceptions of torch and timm for impossible contents of a file, such as 2^70 classes."""


def save_packed(
    model: nn.Module,
    path: Path | str,
    *,
    name: str | None = None,
    model_args: Mapping[str, Argument] | None = None,
) -> None:
    """Write a quantized model as a file of integer codes, which really take their bits.

    Args:
        model: The calibrated or trained model that :func:`ofq.quantize` returned, also inside
            ``torch.compile`` or DistributedDataParallel; it is left unchanged.
        path: The file to write (``.safetensors``).
        name: Name by which ``timm.create_model`` makes the full-precision model; None for what
            timm noted in the model.
        model_args: Further arguments with which it was made, beside the number of classes, such as
            ``img_size``: numbers, texts, true or false.

    Raises:
        UserError: The model isn't quantized or calibrated; it can't be made anew from name and
            arguments; or a quantizer's decoded codes don't equal its quantized weight.

    Example:
        >>> import ofq, timm, torch, tempfile
        >>> model = ofq.quantize(timm.create_model("deit_tiny_patch16_224", depth=1))
        >>> ofq.calibrate(model, torch.rand(2, 3, 224, 224))
        >>> path = tempfile.mkdtemp() + "/packed.safetensors"
        >>> ofq.save_packed(model, path, model_args={"depth": 1})
        >>> images = torch.rand(2, 3, 224, 224)
        >>> bool((ofq.load_packed(path)(images) == model.eval()(images)).all())
        True
    """
    model = quantized_model(model)
    settings = settings_of(model)
    check_calibrated(model)
    packed = pack_weights(model)
    contents = Contents(
        model=name or name_of(model),
        classes=int(getattr(model, "num_classes", 0)),
        settings=settings,
        weights=tuple(Form(layer, w.quantizer, w.bits, w.shape) for layer, w in packed.items()),
        model_args=dict(model_args or {}),
        modules=own_modules(settings),
    )
    text = contents.json()
    _check_rebuilds(model, contents)
    tensors = hold_weights(copy.deepcopy(model), packed).state_dict()
    for layer, weight in packed.items():
        del tensors[f"{layer}.weight"]
        tensors[f"{layer}.weight.codes"] = weight.codes
        tensors[f"{layer}.weight.scale"] = weight.scale
    tensors = {n: t.cpu().contiguous() for n, t in tensors.items()}
    metadata = {"format": "pt", _CONTENTS: text, _HASH: _sha256(text, tensors)}
    # written by Python, whose errors tell what is wrong with the disk
    write_file(Path(path), lambda to: to.write_bytes(safetensors_bytes(tensors, metadata)))


def name_of(model: nn.Module) -> str:
    """Return the name by which timm made a model.

    Raises:
        UserError: timm noted none.
    """
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, Mapping) else None
    if not isinstance(name, str):
        raise UserError(
            f"the {type(model).__name__} doesn't say by which name timm made it; give it as `name`"
        )
    return name


def _check_rebuilds(model: nn.Module, contents: Contents) -> None:
    """Refuse to pack a model that its file wouldn't make anew.

    Raises:
        UserError: A model of this name and these arguments has other weights.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    own = _shapes_of(contents)
    # activation scales get their number in calibration
    other = [n for n, shape in own.items() if 0 not in shape and shapes.get(n) != shape]
    if differing := [*other, *(shapes.keys() - own.keys())]:
        arguments = dict(contents.model_args) or "no further arguments"
        raise UserError(
            f"can't pack the model: {contents.model} with {contents.classes} classes and "
            f"{arguments} has other weights ({some(sorted(differing))}); give the arguments that "
            "it was made with as `model_args`, and its name as `name`"
        )


def _shapes_of(contents: Contents) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the state of the model that a file describes, before calibration."""
    name, classes, args = contents.model, contents.classes, contents.model_args
    model = building.draft(name, classes, args=args)
    try:
        state = building.quantized(model, contents.settings).state_dict()
    except _IMPOSSIBLE:  # a quantizer that needs values
        model = building.build(name, classes, args=args)
        state = building.quantized(model, contents.settings).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def load_packed(path: Path | str) -> nn.Module:
    """Load the model of a packed file, in eval mode.

    Its logits equal those of the exported fake-quantized model exactly on the same machine. On
    another processor, which may round an elementwise product and sum differently, the last bit of a
    weight can differ. The model holds only quantized weights and can't be trained further.

    Args:
        path: A file written by :func:`save_packed` or ``ofq export``. A quantizer from outside this
            package must be registered first, by importing its module.

    Raises:
        UserError: The file is missing or damaged, isn't a packed file, or can't be rebuilt here:
            a quantizer isn't registered, in which case the message names the module to import, or
            its parts fit no model.
    """
    path = Path(path)
    contents, tensors = _read(path)
    try:
        contents.check_quantizers()
        packed = _take_packed(contents, tensors)
        _check_size(contents, tensors, packed)
        unquantized = building.build(contents.model, contents.classes, args=contents.model_args)
        model = hold_weights(building.quantized(unquantized, contents.settings), packed)
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
        model = building.build(contents.model, contents.classes, args=contents.model_args)
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
    try:
        return read_contents(text, f"{path}: metadata '{_CONTENTS}'"), tensors
    except UserError as error:
        raise UserError(printable(error)[:_SHOWN]) from None


def _sha256(contents: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of contents, then of tensors by name, each with name, type and shape."""
    digest = hashlib.sha256(contents.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
