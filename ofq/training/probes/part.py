"""What the kinds of recordings have in common: when they look, and which weights they look at."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Rows = list[dict[str, Any]]
Table = Literal["trajectories", "histograms", "sign_changes", "joint_flips"]
"""The run folder's tables of recordings."""


class Part(nn.Module):
    """One kind of recording over windows of consecutive steps.

    What must outlast an interruption is in buffers. Nothing waits for the device but :meth:`take`.

    Attributes:
        table: The table of the run folder that its rows go to.
    """

    table: Table

    def before_step(self) -> None:
        """The gradients of a step are there, the optimizer hasn't made it yet."""

    def see(self, index: int, latent: Tensor, position: Tensor, slot: int) -> None:
        """Look at one low-bit weight, before a window (slot −1) or after a step of it.

        Args:
            index: Its number among the model's low-bit weights.
            latent: The weight before quantization, (rows, in).
            position: Where it lies on the quantization grid, likewise.
            slot: The step's number within the window, from 0.
        """

    def seen(self, slot: int) -> None:
        """All low-bit weights were shown."""

    def take(self, epoch: int, step: int) -> Rows:
        """The rows of the window that ended with a step, which is then forgotten."""
        raise NotImplementedError


def entries(rows: slice, columns: int, count: int) -> Tensor:
    """A fixed sample of the entries of some rows of a matrix, the same for every run.

    Args:
        rows: The rows.
        columns: The matrix' number of columns.
        count: How many entries are wanted.

    Returns:
        Their flat indices in the matrix, int64, ascending; fewer if there are no more.
    """
    total = (rows.stop - rows.start) * columns
    # a generator of its own, lest recording shift the random numbers that training draws
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return rows.start * columns + order[:count].sort().values


def to_threshold(position: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """Distance of positions on the grid to the nearest rounding threshold, in quantization steps.

    Args:
        position: Positions.
        lowest: The lowest code, or that of each position.
        highest: The highest, likewise; thresholds lie half-way between adjacent codes.
    """
    below = torch.clamp(position.floor(), lowest, highest - 1)
    return (position - below).sub_(0.5).abs_()


def spread(total: int, count: int) -> Tensor:
    """Up to ``count`` of the numbers below ``total``, evenly spread, int64."""
    count = min(total, count)
    return torch.arange(count) * total // count


def to_host(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors of one type on the CPU, by one transfer."""
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]
