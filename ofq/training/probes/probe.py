"""Base class of probes over windows of steps, and helpers for sampling weights."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Rows = list[dict[str, Any]]
Table = Literal["trajectories", "histograms", "sign_changes", "joint_flips", "activations"]
"""Tables of the run folder that probes write."""


class Probe(nn.Module):
    """Base class of one kind of probe over windows of consecutive steps.

    State that must survive an interruption is in buffers. Only :meth:`take` waits for the device.

    Attributes:
        table: The run folder's table of its rows.
    """

    table: Table

    def before_step(self) -> None:
        """Read the gradients of a step, before the optimizer changes the weights."""

    def see(self, index: int, latent: Tensor, position: Tensor, slot: int) -> None:
        """Read one low-bit weight, before a window (slot −1) or after a step of it.

        Args:
            index: Number of the weight among the model's low-bit weights.
            latent: The weight before quantization, (rows, in).
            position: Its position on the quantization grid, (rows, in).
            slot: The step's number within the window, from 0.
        """

    def seen(self, slot: int) -> None:
        """Complete a step, after :meth:`see` was called for all low-bit weights."""

    def take(self, epoch: int, step: int) -> Rows:
        """Return the rows of the window that ended with a step, and forget the window."""
        raise NotImplementedError


def entries(rows: slice, columns: int, count: int) -> Tensor:
    """Return a fixed sample of the entries of some rows of a matrix, equal for every run.

    Args:
        rows: The rows.
        columns: Number of the matrix's columns.
        count: Number of entries wanted.

    Returns:
        Their flat indices in the matrix, int64, ascending; fewer if there are no more.
    """
    total = (rows.stop - rows.start) * columns
    # a generator of its own, so that probes don't shift the random numbers of training
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return rows.start * columns + order[:count].sort().values


def to_threshold(position: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """Return the distance of positions to the nearest rounding threshold, in quantization steps.

    Args:
        position: Positions on the grid.
        lowest: The lowest code, or that of each position.
        highest: The highest code, or that of each position; thresholds lie half-way between
            adjacent codes.
    """
    below = torch.clamp(position.floor(), lowest, highest - 1)
    return (position - below).sub_(0.5).abs_()


def spread(total: int, count: int) -> Tensor:
    """Return up to ``count`` of the numbers below ``total``, evenly spaced, int64."""
    count = min(total, count)
    return torch.arange(count) * total // count


def to_host(tensors: list[Tensor]) -> list[Tensor]:
    """Copy tensors of one type to the CPU in one transfer."""
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]
