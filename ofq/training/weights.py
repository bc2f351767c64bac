"""Weights files: reads safetensors and files of ``torch.save``, writes safetensors."""

import argparse
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ofq.config.datasets import DataFacts, facts_in
from ofq.console import printable
from ofq.errors import UserError, some
from ofq.models.loading import brief, fit_weights, safetensors_bytes
from ofq.quantization import LSQ, low_bit_weights
from ofq.quantization.activations import ActivationQuantizer, activation_quantizers
from ofq.quantization.quantizers.base import weight_quantizers
from ofq.values import read_json

_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # in timm's order
_FORMS = "ofq.quantized"
_PACKED = "ofq"  # in the metadata of a packed model
_ALLOWED = "allowed: weights as .safetensors, or as torch.save writes a state dict (.pth, .pt)"
_LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it
_HEAD = 512  # bytes that identify the kind of a file
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # torch.save before its zip files
_TEXT = frozenset({*range(32, 127), *b"\t\n\r"})
_STARTS = {
    b"\x1f\x8b": "compressed by gzip (unpack it first)",
    b"BZh": "compressed by bzip2 (unpack it first)",
    b"\xfd7zXZ": "compressed by xz (unpack it first)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd (unpack it first)",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"GGUF": "a GGUF file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
}
"""First bytes of files that users mistake for weights, with their descriptions."""
_DATA = "ofq.data"
_COMPILED = re.compile(r"(?<![^.])_orig_mod\.")
_PARALLEL = re.compile(r"^(module\.)+")


def read_weights(path: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, Tensor]:
    """Read the named tensors of a weights file.

    Args:
        path: A ``.safetensors`` file, or one made by ``torch.save``: a plain state dict, or a
            mapping that holds one as ``state_dict_ema``, ``model_ema``, ``state_dict`` or
            ``model``; of several the first of these is read, as by timm. ``module.`` at the
            beginning of names and ``_orig_mod.`` anywhere in them are removed.
        say: Called with a line if there are several, which names the one read.

    Raises:
        UserError: The file is missing, damaged or of another kind, which the message names; it has
            no state dict; or it has objects that can't be loaded without running its code.
    """
    check_weights_file(path)
    weights = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path, say)
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        dense = tensor.layout == torch.strided and not tensor.is_complex()
        if tensor.is_meta or tensor.is_quantized or tensor.is_nested or not dense:
            raise UserError(
                f"{path}: '{printable(name)}' isn't a plain tensor with values; save the state "
                "dict of an ordinary model"
            )
        short = _PARALLEL.sub("", _COMPILED.sub("", name))
        if short in plain:
            raise UserError(f"{path}: holds {printable(short)} twice, with a prefix and without")
        plain[short] = tensor
    return plain


def check_weights_file(path: Path) -> None:
    """Refuse a file that isn't one of weights, by its first bytes.

    Args:
        path: As for :func:`read_weights`.

    Raises:
        UserError: It is missing, empty or truncated, or of another kind, which the message names.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; {_ALLOWED}")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a regular file; {_ALLOWED}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from None
    kind = _kind_of(path, head)
    if kind is not None:
        raise UserError(f"{path}: {kind}; {_ALLOWED}")


def _kind_of(path: Path, head: bytes) -> str | None:
    """Describe a file that isn't one of weights; None for one of weights."""
    if not head:
        return "an empty file"
    size = int.from_bytes(head[:8], "little")
    # checked first, since a size may equal any of the starts below
    if head[8:9] == b"{" and size <= _LARGEST_HEADER:
        if path.suffix != ".safetensors":
            return "a safetensors file by its content (rename it to .safetensors)"
        missing = 8 + size - path.stat().st_size
        return f"cut off or damaged ({missing:,} bytes are missing)" if missing > 0 else None
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the file (`git lfs pull` fetches it)"
    for start, words in _STARTS.items():
        if head.startswith(start):
            return words
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML page, such as a login or error page, in place of the file"
    if head.startswith((b"PK", b"\x80")) and path.suffix == ".safetensors":
        return "a file of torch.save or a zip archive by its content, not safetensors"
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head.startswith(b"\x80"):
        return None if _LEGACY in head else "a pickle that torch.save didn't write"
    if all(byte in _TEXT for byte in head):
        return f"text that begins with {head[:20].decode('ascii')!r}"
    return "of no known kind, or damaged from its beginning on"


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            leaves = {name.rpartition("/")[2] for name in names}
            if "constants.pkl" in leaves:
                return "a TorchScript program (save the state_dict of the model instead)"
            if names and all(name.endswith(".npy") for name in names):
                return "NumPy arrays (.npz)"
            data = next((name for name in names if name.endswith("/data.pkl")), None)
            if data is None:
                return "a zip archive without weights"
            return _damage(archive, data)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, EOFError):
        return "cut off or damaged (its table of contents can't be read); fetch it again"


def _damage(archive: zipfile.ZipFile, data: str) -> str | None:
    """Name the first record with a wrong checksum; torch itself checks none."""
    try:
        archive.read(data)
    except zipfile.BadZipFile:  # damaged, or saved without checksums, which torch can do
        return None
    damaged = archive.testzip()
    return damaged and f"damaged (the checksum of '{damaged}' is wrong); fetch it again"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            packed = _PACKED in (file.metadata() or {})
        weights = load_file(path)
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(
            f"{path}: not a readable safetensors file, cut off or damaged: {brief(error)}"
        ) from None
    if packed:
        raise UserError(
            f"{path}: a packed model, as `ofq export` writes; `ofq.load_packed` reads it"
        )
    return weights


def _pickled(path: Path, say: Callable[[str], None]) -> dict[str, Tensor]:
    try:
        # timm's CheckpointSaver stores the command line with the weights; it is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # the rest is advice on loading unsafely
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = re.split(r"WeightsUnpickler error:\s*", str(error))[-1]
        shown = re.split(r"\s+(?:Please|Check|In PyTorch) ", reason)[0]
        shown = f"it needs {refused[1]}" if refused else shown
        raise UserError(
            f"{path}: not a checkpoint, or not to be loaded safely, as data alone: "
            f"{printable(shown)}; save the model's state_dict() by itself"
        ) from None
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(
            f"{path}: not a readable file of torch.save, cut off or damaged: {brief(error)}"
        ) from None
    weights = _state_dict(content)
    if weights is None:
        raise UserError(
            f"{path}: holds no weights; expected a mapping of names to tensors, by itself or as "
            f"{' or '.join(repr(name) for name in _CONTAINERS)} of another mapping"
        )
    containers = _containers(content)
    if len(containers) > 1:
        say(f"{path}: holds {' and '.join(containers)}; {containers[0]} is taken, as timm does")
    return weights


def _containers(content: object) -> list[str]:
    """Return the keys of a checkpoint that may contain weights, in order of preference."""
    assert isinstance(content, Mapping)
    return [name for name in _CONTAINERS if content.get(name) is not None]


def _state_dict(content: object) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    inner = next((content[name] for name in _containers(content)), content)
    if not isinstance(inner, Mapping) or not inner:
        return None
    plain = all(isinstance(n, str) and isinstance(t, Tensor) for n, t in inner.items())
    return dict(inner) if plain else None


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load a weights file into a model, strictly, and return the model.

    Args:
        model: A full-precision model, or a quantized one; it needn't be calibrated.
        path: As for :func:`read_weights`.

    Raises:
        UserError: The file is missing or damaged, or it is of another model: names are missing or
            unexpected, shapes differ, or, if :func:`save_weights` wrote it, quantizers or bits do.
    """
    fit_weights(model, read_weights(path), path)
    recorded, own = _recorded_forms(path), _forms(model)
    if recorded:
        wrong = [
            f"{layer} is {recorded.get(layer, 'unquantized')}, not {own.get(layer, 'quantized')}"
            for layer in {**recorded, **own}
            if recorded.get(layer) != own.get(layer)
        ]
        if wrong:
            raise UserError(f"{path}: quantized otherwise: {printable(some(wrong))}")
    return model


def _forms(model: nn.Module) -> dict[str, str]:
    """Describe the quantization of each quantized weight and activation of a model."""
    activations = {
        name: f"{'' if isinstance(module, LSQ) else activation_quantizers.name_of(module) + ', '}"
        f"{module.bits} bits"
        for name, module in model.named_modules()
        if isinstance(module, ActivationQuantizer)
    }
    weights = {
        weight.layer: f"{weight_quantizers.name_of(quantizer)} at {quantizer.bits} bits"
        for weight in low_bit_weights(model)
        for quantizer in [weight.quantizer]
    }
    return activations | weights


def _recorded_forms(path: Path) -> dict[str, str]:
    """Return the :func:`_forms` stored in a file; empty for a full-precision model."""
    forms = _metadata(path, _FORMS) or {}
    if not all(isinstance(form, str) for form in forms.values()):
        raise UserError(f"{path}: damaged: its metadata '{_FORMS}' can't be read")
    return forms


def recorded_facts(path: Path) -> DataFacts | None:
    """Return the facts of a weights file's training data; None if it has none.

    Raises:
        UserError: The file is damaged.
    """
    return facts_in(_metadata(path, _DATA), str(path))


def _metadata(path: Path, key: str) -> dict[str, Any] | None:
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(key)
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{path}: not a readable safetensors file: {brief(error)}") from None
    values = None if text is None else read_json(text, f"{path}: metadata '{key}'")
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}: metadata '{key}': expected a mapping")
    return values


def save_weights(model: nn.Module, path: Path, facts: DataFacts | None = None) -> None:
    """Save a model's weights as safetensors, with their quantization as metadata.

    Args:
        model: The model.
        path: The file to write.
        facts: Facts of its training data, saved as metadata too.
    """
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    about = {_FORMS: json.dumps(_forms(model))}
    if facts is not None:
        about[_DATA] = json.dumps(facts.record())
    # by Python, since safetensors' own writing raises no OSError for a full disk
    path.write_bytes(safetensors_bytes(tensors, about))


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Save tensors as safetensors, without metadata."""
    path.write_bytes(safetensors_bytes({n: t.contiguous() for n, t in tensors.items()}, {}))
