"""What launching any of the kernels takes."""

from typing import Any

import torch
from torch import Tensor

from ofq.quantization.quantizers.lsq import LSQ


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **options)


def blocks_of(count: int, size: int) -> int:
    """How many blocks of a size hold so many entries."""
    return -(-count // size)


def scale_of(quantizer: LSQ, x: Tensor) -> Tensor:
    """A quantizer's scales for an activation, in one dimension."""
    return quantizer.effective_scale(x).flatten()
