"""Functions for launching kernels."""

from typing import Any

import torch
from torch import Tensor

from ofq.quantization.quantizers.lsq import LSQ


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **options)


def blocks_of(count: int, size: int) -> int:
    """Return the number of blocks of a size that hold ``count`` entries."""
    return -(-count // size)


def scale_of(quantizer: LSQ, x: Tensor) -> Tensor:
    """Return a quantizer's scales for an activation, flattened."""
    return quantizer.effective_scale(x).flatten()
