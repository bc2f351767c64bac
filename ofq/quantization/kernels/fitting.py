"""Where the kernels may stand for what others compose."""

from importlib.util import find_spec
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ofq.quantization.quantizers.lsq import LSQ

_KINDS = (torch.bfloat16, torch.float16)
_CHANNELS = (16, 32, 64)  # of a head: what tensor cores take, and registers hold
# asked once: compiled code can't
_IS_THERE = torch.version.cuda is not None and find_spec("triton") is not None


def fits(x: Tensor) -> bool:
    """Whether an activation is of the kind that the kernels take: bf16 or fp16, on a GPU."""
    return x.is_cuda and x.dtype in _KINDS and _IS_THERE


def fits_attention(x: Tensor, channels: int) -> bool:
    """Whether the kernels take an activation of an attention with so many channels per head."""
    return fits(x) and channels in _CHANNELS


def ready(quantizer: nn.Module, axis: int) -> TypeGuard[LSQ]:
    """Whether a quantizer is an LSQ, not something in its place, and has its scales on an axis."""
    return type(quantizer) is LSQ and quantizer.axis == (axis,) and quantizer.scale.numel() > 0
