"""Reading and writing weights: safetensors, and the files that ``torch.save`` makes."""

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ofq.errors import UserError, some
from ofq.quantization import LSQ, low_bit_weights
from ofq.quantization.quantizer import registered_name

_CONTAINERS = ("state_dict", "model")
_FORMS = "ofq.quantized"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a weights file.

    Args:
        path: A ``.safetensors`` file, or one made by ``torch.save``: a plain state dict, or a
            mapping that holds one as ``state_dict`` or ``model``. A leading ``module.`` of all
            names is taken off.

    Raises:
        UserError: The file is missing or damaged, holds no state dict, or holds objects that can't
            be loaded without running code of the file's own.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    weights = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    if all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        # timm's CheckpointSaver keeps the command line beside the weights; it is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # the rest is advice on loading unsafely
        reason = str(error).rpartition("WeightsUnpickler error: ")[2]
        said = re.split(r"\s+(?:Please|Check) ", reason)[0]
        raise UserError(
            f"{path}: not a checkpoint, or not to be loaded safely, as data alone: {said}"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a readable file of torch.save: {error}") from None
    found = _state_dict(content)
    if found is None:
        raise UserError(
            f"{path}: holds no weights; expected a mapping of names to tensors, by itself or as "
            f"{' or '.join(repr(name) for name in _CONTAINERS)} of another mapping"
        )
    return found


def _state_dict(content: object) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    inner = next((content[name] for name in _CONTAINERS if name in content), content)
    if not isinstance(inner, Mapping) or not inner:
        return None
    plain = all(isinstance(n, str) and isinstance(t, Tensor) for n, t in inner.items())
    return dict(inner) if plain else None


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load a weights file into a model, strictly, and return the model.

    Args:
        model: A full-precision model, or a quantized one; it needn't be calibrated.
        path: As of :func:`read_weights`.

    Raises:
        UserError: The file is missing or damaged, or it is of another model: names are missing or
            left over, shapes differ, or, if :func:`save_weights` made it, quantizers or bits do.
    """
    fit_weights(model, read_weights(path), path)
    recorded, wanted = _recorded_forms(path), _forms(model)
    if recorded:
        wrong = [
            f"{layer} is {recorded.get(layer, 'unquantized')}, not {wanted.get(layer, 'quantized')}"
            for layer in {**recorded, **wanted}
            if recorded.get(layer) != wanted.get(layer)
        ]
        if wrong:
            raise UserError(f"{path}: quantized otherwise: {some(wrong)}")
    return model


def _forms(model: nn.Module) -> dict[str, str]:
    """How each quantized weight and activation of a model is quantized, in words."""
    activations = {n: f"{m.bits} bits" for n, m in model.named_modules() if isinstance(m, LSQ)}
    weights = {
        weight.layer: f"{registered_name(weight.quantizer)} at {weight.quantizer.bits} bits"
        for weight in low_bit_weights(model)
    }
    return activations | weights


def _recorded_forms(path: Path) -> dict[str, str]:
    """The same of the model that a file was made of; nothing for one in full precision."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get(_FORMS, "{}"))


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Load the named tensors that a file holds into a model, strictly, and return the model.

    Args:
        model: As of :func:`load_weights`.
        weights: The tensors.
        path: The file, for the error.

    Raises:
        UserError: They are of another model: names are missing or left over, or shapes differ.
    """
    wanted = model.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in weights],
        "unexpected": [name for name in weights if name not in wanted],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            # a scale before calibration is empty, and takes its number from the file
            if name in weights and tensor.numel() and weights[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
        raise UserError(f"{path}: weights of another model: {found}")
    model.load_state_dict(weights)
    return model


def save_weights(model: nn.Module, path: Path) -> None:
    """Save a model's weights as safetensors, and how they are quantized as metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # by Python, as safetensors' own writing tells of a full disk by no OSError
    path.write_bytes(save(tensors, {_FORMS: json.dumps(_forms(model))}))
