"""What products are computed in: autocast, by the names that recipes use."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ofq.config.stage import Precision

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


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """What scales losses so that gradients of half precision don't vanish; in others, nothing does.

    It skips a step whose gradients overflow, and scales less from then on. With a fused optimizer
    it never waits for the device.

    Args:
        precision: What products are computed in.
        device: Where.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def widened(tensor: Tensor) -> Tensor:
    """A tensor of half precision in float32; any other as it is."""
    return tensor.float() if tensor.dtype in _TYPES.values() else tensor
