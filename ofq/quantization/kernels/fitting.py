"""Conditions under which the fused kernels replace separate operations."""

from importlib.util import find_spec
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ofq.quantization.quantizers.lsq import LSQ

_KINDS = (torch.bfloat16, torch.float16)
_CHANNELS = (16, 32, 64)  # per head: tensor cores support these, and registers suffice
# at import: compiled code can't call find_spec
_IS_THERE = torch.version.cuda is not None and find_spec("triton") is not None


def fits(x: Tensor) -> bool:
    """Return whether the kernels support an activation: bf16 or fp16, on a GPU."""
    return x.is_cuda and x.dtype in _KINDS and _IS_THERE


def fits_attention(x: Tensor, channels: int) -> bool:
    """Return whether the kernels support an attention's activation with these channels per head."""
    return fits(x) and channels in _CHANNELS


def ready(quantizer: nn.Module, axis: int) -> TypeGuard[LSQ]:
    """Return whether a quantizer is exactly :class:`LSQ` with scales set along this axis.

    Not while it has a reader: a kernel doesn't hold the tensors to show.
    """
    return (
        type(quantizer) is LSQ
        and quantizer.axis == (axis,)
        and quantizer.scale.numel() > 0
        and quantizer.reader is None
    )
