"""PACT (Choi et al. 2018, arXiv 1805.06085): activations clipped at a learned value."""

import math

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.activations import ActivationQuantizer, register_activation_quantizer


@register_activation_quantizer("pact")
class PACT(ActivationQuantizer):
    """Activation quantizer with a learned clipping value α and evenly spaced levels.

    With the step α/Qp: y = step·round(clamp(x, Qn·step, α)/step), Qp and Qn the highest and lowest
    code, 0 if unsigned. dy/dx is 1 inside, 0 outside; dy/dα is 1 where x ≥ α, Qn/Qp below the
    lowest level, 0 between: unlike LSQ's, it doesn't see the rounding.

    Args:
        bits: Bit-width, 2 to 8.
        axis: The dimension or dimensions that have an α per index; None for one α.
        signed: Whether codes may be negative. The paper's inputs, after ReLU, never are.
        reach: The first tensor sets α to this multiple of its mean magnitude; above 0.

    Attributes:
        clip: α of each index of the axis; empty until a tensor sets it.

    Raises:
        UserError: The bit-width or the reach isn't allowed.
    """

    def __init__(
        self,
        bits: int,
        axis: int | tuple[int, ...] | None = None,
        signed: bool = True,
        reach: float = 3.0,
    ) -> None:
        super().__init__(bits, axis, signed)
        if not isinstance(reach, int | float) or not 0 < reach < math.inf:
            raise UserError(f"reach {reach!r}; allowed: a finite number above 0")
        self.reach = reach
        self.clip = nn.Parameter(torch.empty(0))

    def initialize(self, x: Tensor) -> None:
        """Set α from a tensor."""
        x = x.detach().float()
        axes = {d % x.ndim for d in self.axis}
        others = [d for d in range(x.ndim) if d not in axes]
        self.clip.data = self.reach * x.abs().mean(others).reshape(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor; the first one sets α."""
        self.prepare(x)
        low, high = self.range
        clip = self._clip(x)
        x = x.float()
        clipped = torch.where(x >= clip, clip, x)
        if low < 0:
            least = clip * (low / high)
            clipped = torch.where(x < least, least, clipped)
        else:
            clipped = clipped.clamp_min(0)
        with torch.no_grad():
            step = clip / high
            rounded = (clipped / step).round_() * step
        return clipped + (rounded - clipped).detach()

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Return the code of each entry, int16."""
        low, high = self.range
        position = x.float() / (self._clip(x) / high)
        return position.clamp_(low, high).round_().to(torch.int16)

    def _clip(self, x: Tensor) -> Tensor:
        # as LSQ's step size: a value that training made 0 or negative would give no levels
        clip = self.clip.float()
        clip = clip - clip.detach() + clip.detach().clamp_min(1e-5)
        return self.along_axis(clip, x)
