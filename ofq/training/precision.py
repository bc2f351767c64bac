"""Precision of products: autocast and loss scaling, by the names in recipes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ofq.config.stage import Precision

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def casting(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return a context that computes products in a precision.

    Parameters, sums over a batch and losses stay float32.

    Args:
        precision: Name of the precision; ``fp32`` casts nothing.
        device: Device of the computation.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, _TYPES[precision])


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return a scaler of losses against vanishing float16 gradients; disabled otherwise.

    It skips a step whose gradients overflow, and scales less from then on. With a fused optimizer
    it never waits for the device.

    Args:
        precision: Precision of products.
        device: Device of the computation.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def widened(tensor: Tensor) -> Tensor:
    """Convert a tensor of half precision to float32; return any other unchanged."""
    return tensor.float() if tensor.dtype in _TYPES.values() else tensor
