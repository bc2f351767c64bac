"""Loading of named tensors into models, strictly, and the content of safetensors files."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from ofq.console import printable
from ofq.errors import UserError, some

_RELEASED = (".clip_val", ".input_quant_fn.s", ".lsqw_fn.s")


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Load the named tensors of a file into a model, strictly, and return the model.

    A checkpoint under other names, such as Microsoft's of Swin, is renamed by timm's filter for the
    model; one whose tensors the filter would change, as to fit another image size, is refused.

    Args:
        model: A full-precision model, or a quantized one; it needn't be calibrated.
        weights: The tensors.
        path: The file, for errors.

    Raises:
        UserError: They are of another model: names are missing or unexpected, or shapes differ.
    """
    expected = model.state_dict()
    if weights.keys() != expected.keys():
        weights = _renamed(model, weights)
    problems = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            # an uncalibrated scale is empty, and is loaded from the file
            if name in weights and tensor.numel() and weights[name].shape != tensor.shape
        ],
        "of another type": [
            f"{name} {weights[name].dtype} for {tensor.dtype}"
            for name, tensor in expected.items()
            if name in weights and not _converts(weights[name], tensor)
        ],
    }
    if any(problems.values()):
        faults = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
        layout = layout_of(weights)
        known = f" ({layout})" if layout and layout != layout_of(expected) else ""
        raise UserError(f"{path}: weights of another model{known}: {printable(faults)}")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: weights of another model: {brief(error)}") from None
    return model


def _renamed(model: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename weights by timm's filter for a model, unless it would also change tensors."""
    of_model = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if of_model is None:
        return weights
    try:
        renamed = of_model(dict(weights), model)
    except Exception:  # it doesn't know these names; the caller reports them
        return weights
    same = {id(tensor) for tensor in weights.values()}
    fits = renamed.keys() == model.state_dict().keys()
    return renamed if fits and all(id(t) in same for t in renamed.values()) else weights


def _converts(given: Tensor, wanted: Tensor) -> bool:
    """Return whether a tensor may be loaded into one of another type: equal, or both floats."""
    both_floats = given.is_floating_point() and wanted.is_floating_point()
    return both_floats or given.dtype == wanted.dtype


def layout_of(names: Iterable[str]) -> str | None:
    """Name the layout of weights by their tensors' names; None for other layouts."""
    names = list(names)
    if any(".scores." in name for name in names):
        return "quantized weights of this package"
    if any(name.endswith(_RELEASED) for name in names):
        return "a checkpoint of the authors' code, which `ofq import-checkpoint` takes"
    return None


def brief(error: Exception) -> str:
    """Return the first sentence of torch's error; the others concern its code."""
    return printable(str(error).split(". ")[0].partition("\n")[0]) or type(error).__name__


def safetensors_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the content of a safetensors file, a function of tensors and metadata.

    The library writes the metadata's keys in an order that changes from call to call.
    """
    content = save(tensors, metadata)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
