"""The paths of a few weights through the quantization grid, step by step."""

from typing import Any

import torch
from torch import nn

from ofq.quantization import low_bit_weights


class Trajectories:
    """Records latent and quantized value, code and row scale of a few weights at every step.

    Args:
        model: A quantized model.
        count: How many weights to follow: the first ones of the first low-bit weight.

    Attributes:
        rows: What was recorded since the last :meth:`take`.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self.weight = next(low_bit_weights(model), None) if count else None
        self.count = count
        self.rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Record the weights as they are now; waits for the device."""
        if self.weight is None:
            return
        latent = self.weight.latent()
        quantizer = self.weight.quantizer
        columns = {
            "latent": latent,
            "quantized": quantizer(latent),
            "code": quantizer.codes(latent),
            "scale": quantizer.scale(latent).expand_as(latent),
        }
        values = {name: v.flatten()[: self.count].tolist() for name, v in columns.items()}
        self.rows += [
            {"step": step, "weight": i, **{name: v[i] for name, v in values.items()}}
            for i in range(len(values["latent"]))
        ]

    def take(self) -> list[dict[str, Any]]:
        """Hand over what was recorded."""
        rows, self.rows = self.rows, []
        return rows
