"""Noise injection: random codes for the weights that oscillate (OFQ, table 1)."""

from typing import Protocol

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.layers import low_bit_weights, quantized_model
from ofq.quantization.quantizers.base import WeightQuantizer, check_boundary_range, near_threshold


class Noise(Protocol):
    """Rule that gives weights random codes."""

    def codes(
        self, position: Tensor, inside: Tensor, drawn: Tensor, quantizer: WeightQuantizer
    ) -> Tensor:
        """Return the codes of weights, float32.

        Args:
            position: Positions of the weights on the grid.
            inside: Mask of those inside the boundary range of a threshold.
            drawn: A uniform random number from [0, 1) for each.
            quantizer: Their quantizer.
        """


class Oscillating:
    """Noise that rounds each weight inside the boundary range to either side at random."""

    def codes(
        self, position: Tensor, inside: Tensor, drawn: Tensor, quantizer: WeightQuantizer
    ) -> Tensor:
        """Return the codes; half of the weights inside keep theirs, on average."""
        return torch.where(inside, position.floor() + (drawn < 0.5), position.round())


class Others:
    """Control: noise that moves as many of the other weights by one level, on average."""

    def codes(
        self, position: Tensor, inside: Tensor, drawn: Tensor, quantizer: WeightQuantizer
    ) -> Tensor:
        """Return the codes; up and down are equally likely, except at the outermost codes."""
        own = position.round()
        share = inside.sum() / 2 / (~inside).sum().clamp_min(1)
        away = torch.where(drawn < share / 2, 1, -1)
        away = torch.where(own == quantizer.lowest, 1, away)
        away = torch.where(own == quantizer.highest, -1, away)
        return own + away * (~inside & (drawn < share))


NOISES: dict[str, type[Noise]] = {"oscillating": Oscillating, "others": Others}
"""Implementations of :class:`Noise` by their names in the settings of a method."""


class NoiseInjection:
    """Injection of random codes into a trained model, to measure how much they matter.

    A weight next to a rounding threshold crosses it again and again during training, so its side at
    the end is random. Scales are unchanged. Afterwards the model is for evaluation only.

    Args:
        model: A quantized model, which is changed in place.
        boundary_range: BR, in quantization steps, in (0, 0.5).
        noise: Rule that selects weights and codes.

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
        """Draw random codes, which replace those of earlier draws.

        Args:
            generator: Random generator on the CPU; None for torch's default.

        Returns:
            Percentage of the low-bit weights whose code now differs from the trained model's.
        """
        changed = sum(held.draw(self._noise, self.boundary_range, generator) for held in self._held)
        return 100 * float(changed) / sum(held.latent.numel() for held in self._held)


class _Held(nn.Module):
    """Replacement of a weight's quantizer that returns fixed values.

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
        """Set the values from noisy codes; return the number of codes that changed."""
        quantizer = self.quantizer
        position = quantizer.position(self.latent)
        inside = near_threshold(position, boundary_range, quantizer.lowest, quantizer.highest)
        # on the CPU, so that the numbers are the same for any device
        drawn = torch.rand(position.shape, generator=generator).to(position.device)
        codes = noise.codes(position, inside, drawn, quantizer)
        self.values = quantizer.level(self.latent, codes)
        return (codes != position.round()).sum()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fixed values, for any weight."""
        return self.values
