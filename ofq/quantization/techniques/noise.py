"""Noise injection: other codes for the weights that oscillate (OFQ, table 1)."""

from typing import Protocol

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.layers import low_bit_weights, quantized_model
from ofq.quantization.quantizers.base import WeightQuantizer, check_boundary_range, near_threshold


class Noise(Protocol):
    """Which weights get other codes, and which ones."""

    def codes(
        self, position: Tensor, inside: Tensor, drawn: Tensor, quantizer: WeightQuantizer
    ) -> Tensor:
        """Codes for weights, float32.

        Args:
            position: Where they lie on the grid.
            inside: Which of them lie inside the boundary range of a threshold.
            drawn: A random number from [0, 1) for each.
            quantizer: Their quantizer.
        """


class Oscillating:
    """Each weight inside the boundary range is rounded to either side at random."""

    def codes(
        self, position: Tensor, inside: Tensor, drawn: Tensor, quantizer: WeightQuantizer
    ) -> Tensor:
        """See :class:`Noise`; half of the weights inside keep their code, on average."""
        return torch.where(inside, position.floor() + (drawn < 0.5), position.round())


class Others:
    """A control: as many of the other weights move by one level, on average."""

    def codes(
        self, position: Tensor, inside: Tensor, drawn: Tensor, quantizer: WeightQuantizer
    ) -> Tensor:
        """See :class:`Noise`; up and down are equally likely, but at the grid's ends."""
        own = position.round()
        share = inside.sum() / 2 / (~inside).sum().clamp_min(1)
        away = torch.where(drawn < share / 2, 1, -1)
        away = torch.where(own == quantizer.lowest, 1, away)
        away = torch.where(own == quantizer.highest, -1, away)
        return own + away * (~inside & (drawn < share))


NOISES: dict[str, type[Noise]] = {"oscillating": Oscillating, "others": Others}
"""Each :class:`Noise` by the name that a method's settings give it."""


class NoiseInjection:
    """Gives low-bit weights of a trained model other codes, to see how much they matter.

    A weight next to a rounding threshold crosses it again and again while training, and where it is
    when training ends is chance. Scales stay as they are. The model is for evaluation afterwards.

    Args:
        model: A quantized model, which is changed.
        boundary_range: BR, in quantization steps, in (0, 0.5).
        noise: Which weights.

    Raises:
        UserError: The boundary range isn't allowed, or the model has no low-bit weights.
    """

    def __init__(
        self, model: nn.Module, boundary_range: float = 0.005, noise: Noise | None = None
    ) -> None:
        self.boundary_range = check_boundary_range(boundary_range)
        self._noise = noise or Oscillating()
        self._held = []
        for weight in list(
            low_bit_weights(quantized_model(model, "no low-bit weights to change: "))
        ):
            held = _Held(weight.quantizer, weight.latent())
            weight.owner.weight_quantizer = held
            self._held.append(held)
        if not self._held:
            raise UserError("no noise to inject: the model has no low-bit weights")

    @torch.no_grad()
    def inject(self, generator: torch.Generator | None = None) -> float:
        """Draw codes anew, in place of those of any draw before.

        Args:
            generator: Random numbers of the CPU; left out, torch's own.

        Returns:
            Percentage of the low-bit weights whose code now isn't that of the trained model.
        """
        changed = sum(held.draw(self._noise, self.boundary_range, generator) for held in self._held)
        return 100 * float(changed) / sum(held.latent.numel() for held in self._held)


class _Held(nn.Module):
    """Stands in for a weight's quantizer, with values of its own.

    Args:
        quantizer: The quantizer.
        latent: The weight before quantization.
    """

    values: Tensor
    latent: Tensor

    def __init__(self, quantizer: WeightQuantizer, latent: Tensor) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.register_buffer("latent", latent.detach(), persistent=False)
        self.register_buffer("values", quantizer(latent).detach(), persistent=False)

    def draw(
        self, noise: Noise, boundary_range: float, generator: torch.Generator | None
    ) -> Tensor:
        """Take the values of noisy codes; the number of codes that aren't the weight's own."""
        quantizer = self.quantizer
        position = quantizer.position(self.latent)
        inside = near_threshold(position, boundary_range, quantizer.lowest, quantizer.highest)
        # drawn on the CPU, so that they are the same on any device
        drawn = torch.rand(position.shape, generator=generator).to(position.device)
        codes = noise.codes(position, inside, drawn, quantizer)
        self.values = quantizer.level(self.latent, codes)
        return (codes != position.round()).sum()

    def forward(self, weight: Tensor) -> Tensor:
        """The values, whatever the weight."""
        return self.values
