"""Histograms of latent weights on their quantization grid (paper, Figure 3)."""

import torch
from torch import Tensor

from ofq.quantization.layers import QuantizedWeight
from ofq.training.probes.probe import Rows, Table, to_host

_FINEST = 100  # bins per quantization step
_BINS = 1600  # at most, over the whole grid


def bins_per_step(bits: int) -> int:
    """Return the number of bins per quantization step: 100 up to 4 bits, fewer above."""
    return min(_FINEST, _BINS // 2**bits)


class Histograms:
    """Histograms of all low-bit weights by their position on the grid, at a few epochs.

    The bins begin half a step below the lowest code and end half a step above the highest, so
    thresholds are edges of bins; weights beyond the outermost levels count at the position to which
    the quantizer clips them.

    Args:
        weights: The model's low-bit weights.
        moments: Number of epochs with a histogram, evenly spaced from the stage's start to its end;
            a single one is at the end.
        epochs: Number of the stage's epochs.
    """

    table: Table = "histograms"

    def __init__(self, weights: list[QuantizedWeight], moments: int, epochs: int) -> None:
        self.weights = weights
        gaps = max(1, moments - 1)
        self.epochs = {epochs - epochs * n // gaps for n in range(moments)}

    @torch.no_grad()
    def take(self, epoch: int, step: int) -> Rows:
        """Return a row per role and bits; none if this epoch has no histogram."""
        if epoch not in self.epochs:
            return []
        counts: dict[tuple[str, int], Tensor] = {}
        for weight in self.weights:
            bins, bits = self._bins(weight), weight.quantizer.bits
            for role, rows in weight.roles.items():
                size = bins_per_step(bits) * 2**bits
                empty = torch.zeros(size, dtype=torch.int64, device=bins.device)
                mine = counts.setdefault((role, bits), empty)
                chosen = bins[rows].flatten()
                mine.index_add_(0, chosen, torch.ones_like(chosen))
        places = {"epoch": epoch, "step": step}
        return [
            {**places, "role": role, "weight_bits": bits, "counts": numbers.tolist()}
            for (role, bits), numbers in zip(counts, to_host([*counts.values()]), strict=True)
        ]

    def _bins(self, weight: QuantizedWeight) -> Tensor:
        quantizer = weight.quantizer
        per_step = bins_per_step(quantizer.bits)
        position = quantizer.position(weight.latent()) - (quantizer.lowest - 0.5)
        return (position * per_step).long().clamp_(0, per_step * 2**quantizer.bits - 1)
