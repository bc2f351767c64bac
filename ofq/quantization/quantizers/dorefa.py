"""DoReFa's weights (Zhou et al. 2016, arXiv 1606.06160): rounded after a hyperbolic tangent."""

import torch
from torch import Tensor

from ofq.errors import UserError
from ofq.quantization.quantizers.base import WeightQuantizer, register_weight_quantizer

_SMALLEST = 1e-5  # floor of the maximum


@register_weight_quantizer("dorefa")
class DoReFa(WeightQuantizer):
    """Weight quantizer of the whole tensor, on evenly spaced levels of tanh(w).

    With r = tanh(w)/(2·max|tanh(w)|) + ½ and m = 2^b − 1: w_q = c·(2·round(m·r)/m − 1), levels
    from −c to c. The gradient passes through round() unchanged, and on through tanh and
    the maximum, as in the authors' code.

    Args:
        bits: Bit-width, 2 to 8.
        levels: ``unit`` for the paper's c = 1, which a batch norm behind the layer undoes;
            ``matched``, for networks without one, makes the mean magnitude of w_q that of w:
            c = mean|w|/mean|2·round(m·r)/m − 1|, without gradient.

    Attributes:
        matched: Whether ``levels`` is ``matched``.

    Raises:
        UserError: The bit-width or the option isn't allowed.
    """

    latent_levels = False

    def __init__(self, bits: int, levels: str = "matched") -> None:
        super().__init__(bits)
        if levels not in ("unit", "matched"):
            raise UserError(f"levels {levels!r}; allowed: 'unit', 'matched'")
        self.matched = levels == "matched"

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        """Return c, the same number for each row."""
        scale = torch.ones((), device=weight.device)
        if self.matched:
            magnitude = self._unit(self.position(weight).round_()).abs().mean()
            scale = weight.float().abs().mean() / magnitude
        return scale.expand(len(weight), *[1] * (weight.ndim - 1))

    def step_size(self, weight: Tensor) -> Tensor:
        """Return 2c/m, the distance between levels; in w, a step has no constant length."""
        return self.scale(weight) * (2 / (2**self.bits - 1))

    @torch.no_grad()
    def position(self, weight: Tensor) -> Tensor:
        """Return m·r, shifted so that codes start at −2^(b−1)."""
        return self._position(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of any shape."""
        position = self._position(weight)
        value = self.decode(position.detach().round(), self.scale(weight))
        passed = (position - position.detach()) * self.step_size(weight)
        return value + passed

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return c·(2·(code + 2^(b−1))/m − 1)."""
        return self._unit(codes) * scale

    def _unit(self, codes: Tensor) -> Tensor:
        return (codes - self.lowest) * (2 / (2**self.bits - 1)) - 1

    def _position(self, weight: Tensor) -> Tensor:
        bent = weight.float().tanh()
        # floored as LSQ's scale is, so that a weight of zeros has a finite gradient
        largest = bent.abs().max().clamp_min(_SMALLEST)
        return (bent / (2 * largest) + 0.5) * (2**self.bits - 1) + self.lowest
