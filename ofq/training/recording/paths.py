"""The paths of a few weights through the quantization grid, step by step."""

import torch
from torch import Tensor

from ofq.quantization.layers import QuantizedWeight
from ofq.training.recording.part import Part, Rows

DEPTH = 5 / 6
"""How deep the followed matrices lie: the paper's figures show the 10th of 12 blocks."""

_COLUMNS = ("latent", "quantized", "code", "scale", "position")


class WeightPaths(Part):
    """Follows a few weights: latent and quantized value, code, position, and scale of the row.

    The weights are spread evenly over the roles. Of each role's matrices the one at :data:`DEPTH`
    is looked at, and of its weights those that lie nearest to a threshold when the stage begins:
    of weights drawn at random, most never flip.

    Args:
        weights: The model's low-bit weights.
        count: How many entries to follow.
        steps: Steps of a window.
    """

    table = "trajectories"
    values: Tensor

    def __init__(self, weights: list[QuantizedWeight], count: int, steps: int) -> None:
        super().__init__()
        self.places = _places(weights, count)
        self.quantizers = [weight.quantizer for weight in weights]
        self.names = [
            {"layer": weights[index].layer, "role": role}
            for index, role, chosen in self.places
            for _ in chosen
        ]
        device = weights[0].latent().device
        for number, (*_, chosen) in enumerate(self.places):
            self.register_buffer(f"entries_{number}", chosen)
        self.register_buffer(
            "values", torch.zeros(steps, len(self.names), len(_COLUMNS), device=device)
        )

    def see(self, index: int, latent: Tensor, position: Tensor, slot: int) -> None:
        """Note the followed entries of a weight after a step."""
        begin = 0
        for number, (place, _, chosen) in enumerate(self.places):
            if place == index and slot >= 0:
                found = self._columns(index, latent, position, self.get_buffer(f"entries_{number}"))
                self.values[slot, begin : begin + len(chosen)] = found
            begin += len(chosen)

    def _columns(self, index: int, latent: Tensor, position: Tensor, chosen: Tensor) -> Tensor:
        """(entries, :data:`_COLUMNS`)."""
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
        """A row per step and weight."""
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


def _places(weights: list[QuantizedWeight], count: int) -> list[tuple[int, str, Tensor]]:
    """For each role: the number of the matrix, the role, and the entries to follow."""
    roles: dict[str, list[tuple[int, slice]]] = {}
    for index, weight in enumerate(weights):
        for role, rows in weight.roles.items():
            roles.setdefault(role, []).append((index, rows))
    places = []
    for number, (role, found) in enumerate(roles.items()):
        index, rows = found[round(DEPTH * (len(found) - 1))]
        share = len(range(number, count, len(roles)))
        if share:
            places.append((index, role, _nearest(weights[index], rows, share)))
    return places


@torch.no_grad()
def _nearest(weight: QuantizedWeight, rows: slice, count: int) -> Tensor:
    """Flat indices of the entries of some rows that lie nearest to a threshold."""
    quantizer, latent = weight.quantizer, weight.latent()
    position = quantizer.position(latent)[rows].flatten()
    below = position.floor().clamp_(quantizer.lowest, quantizer.highest - 1)
    order = (position - below - 0.5).abs().argsort(stable=True)
    return rows.start * latent.shape[1] + order[:count].sort().values
