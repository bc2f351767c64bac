"""Paths of a few weights across the quantization grid, step by step."""

import torch
from torch import Tensor

from ofq.quantization.layers import QuantizedWeight
from ofq.training.probes.probe import Probe, Rows, to_threshold

DEPTH = 5 / 6
"""Relative depth of the followed matrices: the paper's figures show the 10th of 12 blocks."""

_COLUMNS = ("latent", "quantized", "code", "scale", "position")


class WeightPaths(Probe):
    """Paths of a few weights: latent and quantized value, code, position, and scale of the row.

    The weights are distributed evenly over the roles. Of each role's matrices the one at
    :data:`DEPTH` is followed, and of its weights those nearest to a threshold when the stage
    begins: most weights drawn at random never flip.

    Args:
        weights: The model's low-bit weights.
        count: Number of entries to follow.
        steps: Number of steps of a window.
    """

    table = "trajectories"
    values: Tensor

    def __init__(self, weights: list[QuantizedWeight], count: int, steps: int) -> None:
        super().__init__()
        self.quantizers = [weight.quantizer for weight in weights]
        self.names: list[dict[str, str]] = []
        self.slices: dict[int, slice] = {}
        for index, roles in _places(weights, count).items():
            begin = len(self.names)
            for role, chosen in roles.items():
                self.names += [{"layer": weights[index].layer, "role": role}] * len(chosen)
            self.register_buffer(f"entries_{index}", torch.cat([*roles.values()]))
            self.slices[index] = slice(begin, len(self.names))
        device = weights[0].latent().device
        self.register_buffer(
            "values", torch.zeros(steps, len(self.names), len(_COLUMNS), device=device)
        )

    def see(self, index: int, latent: Tensor, position: Tensor, slot: int) -> None:
        """Store the followed entries of a weight after a step."""
        if index in self.slices and slot >= 0:
            chosen = self.get_buffer(f"entries_{index}")
            self.values[slot, self.slices[index]] = self._columns(index, latent, position, chosen)

    def _columns(self, index: int, latent: Tensor, position: Tensor, chosen: Tensor) -> Tensor:
        """Return the values of the entries, (entries, :data:`_COLUMNS`)."""
        quantizer = self.quantizers[index]
        at = position.flatten()[chosen]
        scale = quantizer.scale(latent).expand_as(latent)
        return torch.stack(
            [
                latent.flatten()[chosen],
                quantizer(latent).flatten()[chosen],
                at.round(),
                scale[chosen // latent.shape[1], chosen % latent.shape[1]],
                at,
            ],
            dim=-1,
        )

    def take(self, epoch: int, step: int) -> Rows:
        """Return a row per step and weight."""
        first = step - len(self.values) + 1
        return [
            {
                "step": first + slot,
                "weight": number,
                **self.names[number],
                **dict(zip(_COLUMNS, values, strict=True)),
                "code": int(values[2]),
            }
            for slot, weights in enumerate(self.values.tolist())
            for number, values in enumerate(weights)
        ]


def _places(weights: list[QuantizedWeight], count: int) -> dict[int, dict[str, Tensor]]:
    """Return the entries to follow, by role, for each followed matrix."""
    roles: dict[str, list[int]] = {}
    for index, weight in enumerate(weights):
        for role in weight.roles:
            roles.setdefault(role, []).append(index)
    places: dict[int, dict[str, Tensor]] = {}
    for number, (role, matrices) in enumerate(roles.items()):
        index = matrices[round(DEPTH * (len(matrices) - 1))]
        share = len(range(number, count, len(roles)))
        if share:
            nearest = _nearest(weights[index], weights[index].roles[role], share)
            places.setdefault(index, {})[role] = nearest
    return places


@torch.no_grad()
def _nearest(weight: QuantizedWeight, rows: slice, count: int) -> Tensor:
    """Return flat indices of the entries of some rows that lie nearest to a threshold."""
    quantizer, latent = weight.quantizer, weight.latent()
    position = quantizer.position(latent)[rows].flatten()
    lowest, highest = position.new_tensor([quantizer.lowest, quantizer.highest])
    order = to_threshold(position, lowest, highest).argsort(stable=True)
    return rows.start * latent.shape[1] + order[:count].sort().values
