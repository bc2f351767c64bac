"""What products are computed in: autocast, by the names that recipes use."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def casting(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Compute products in a precision; parameters, sums over a batch and losses stay float32.

    Args:
        precision: Its name; ``fp32`` casts nothing.
        device: Where they are computed.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, _TYPES[precision])


def widened(tensor: Tensor) -> Tensor:
    """A tensor of half precision in float32; any other as it is."""
    return tensor.float() if tensor.dtype in _TYPES.values() else tensor
