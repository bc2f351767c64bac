"""Import of the authors' released checkpoints as quantized models of this package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ofq.config import Quantization
from ofq.errors import UserError
from ofq.models.loading import layout_of
from ofq.quantization.released import convert_released_state
from ofq.training import models
from ofq.training.data.augmentation import ModelArgs
from ofq.training.weights import read_weights


@dataclass(frozen=True)
class Imported:
    """Imported model of a released checkpoint.

    Attributes:
        model: The quantized model with the checkpoint's weights and scales; it needs no
            calibration.
        dropped: Name and reason of each tensor that the model's function doesn't use.
    """

    model: nn.Module
    dropped: list[tuple[str, str]]

    def reasons(self) -> dict[str, list[str]]:
        """Return the dropped tensors' names by reason."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.dropped:
            groups.setdefault(reason, []).append(name)
        return groups


def import_released(
    path: Path,
    name: str,
    quantization: Quantization,
    classes: int,
    say: Callable[[str], None] = lambda text: None,
    args: ModelArgs | None = None,
) -> Imported:
    """Build a quantized model from a checkpoint in the released layout.

    Args:
        path: A file as for :func:`ofq.training.weights.read_weights`, with the released names.
        name: Name of the timm model.
        quantization: The checkpoint's quantization.
        classes: Number of classes of its heads.
        say: As for :func:`ofq.training.weights.read_weights`.
        args: Further arguments of the model's constructor.

    Raises:
        UserError: The file can't be read, or doesn't fit the model: tensors are missing, left
            over or of another shape.
    """
    state = read_weights(path, say)
    if layout_of(state) == layout_of([".scores."]):
        qkr = " --qkr" if any(".merged." in name for name in state) else ""
        raise UserError(
            f"{path}: {layout_of(state)}, so there is nothing to import; "
            f"`ofq eval {path} --model {name} --bits {quantization.bits}{qkr} --data DATA` takes it"
        )
    model = models.quantized(models.build(name, classes, args=args), quantization)
    try:
        released = convert_released_state(state, model)
    except UserError as error:
        plain = (
            ""
            if layout_of(state)
            else (
                "not in the layout of the authors' code (full-precision weights are given as a "
                "recipe's 'pretrained'); "
            )
        )
        raise UserError(f"{path}: {plain}{error}") from None
    model.load_state_dict(released.state)
    return Imported(model, released.dropped)
