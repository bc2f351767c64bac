"""EWGS (Lee et al. 2021, arXiv 2104.00903): gradients scaled by the distance to the grid."""

import math
from typing import Any

import torch
from torch import Tensor

from ofq.errors import UserError
from ofq.quantization.activations import (
    ActivationQuantizer,
    register_activation_quantizer,
)
from ofq.quantization.products import Product
from ofq.quantization.quantizers.base import (
    WeightQuantizer,
    register_weight_quantizer,
    weight_quantizers,
)
from ofq.quantization.quantizers.lsq import LSQ


class _ElementWise(torch.autograd.Function):
    """Identity whose gradient is g·(1 + δ·sign(g)·e), e the distance to the grid in steps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, distance: Tensor, delta: float) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.delta = delta
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        return gradient + ctx.delta * gradient.abs() * distance, None, None


def _check_delta(delta: float) -> float:
    if not isinstance(delta, int | float) or not 0 <= delta < math.inf:
        raise UserError(f"delta {delta!r}; allowed: a finite number, 0 or above")
    return delta


@register_weight_quantizer("ewgs")
class EWGS(WeightQuantizer):
    """Any weight quantizer with EWGS's gradient.

    dL/dw = dL/dw_q · (1 + δ·sign(dL/dw_q)·(u − round(u))), u the position on the grid, in steps,
    where the base's gradient is the identity; 0 where the base's is. Values, codes and learned
    scales are the base's.

    Args:
        bits: Bit-width, 2 to 8.
        delta: δ, 0 or above; 0 is the base itself. The authors' δ is in units of the whole range,
            2^b − 1 times this one. The default is of no source.
        base: Registered name of a weight quantizer, made with its default options.

    Attributes:
        base: The quantizer.

    Raises:
        UserError: The bit-width or δ isn't allowed, or no other quantizer has the base's name.
    """

    def __init__(self, bits: int, delta: float = 0.2, base: str = "lsq") -> None:
        super().__init__(bits)
        self.delta = _check_delta(delta)
        if base == "ewgs":
            raise UserError("base 'ewgs'; allowed: another weight quantizer")
        weight_quantizers.check_options(base, {}, fixed=1)
        self.base: WeightQuantizer = weight_quantizers.make(base, bits)
        self.latent_levels = self.base.latent_levels

    def initialize(self, weight: Tensor) -> None:
        """Set the base's learnable state."""
        self.base.initialize(weight)

    def scale(self, weight: Tensor) -> Tensor:
        """Return the base's scale."""
        return self.base.scale(weight)

    def step_size(self, weight: Tensor) -> Tensor:
        """Return the base's step size."""
        return self.base.step_size(weight)

    def position(self, weight: Tensor) -> Tensor:
        """Return the base's position."""
        return self.base.position(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight as the base does."""
        with torch.no_grad():
            position = self.base.position(weight)
            distance = position - position.round()
        quantized: Tensor = self.base(_ElementWise.apply(weight, distance, self.delta))
        return quantized

    def learn_from_held(self, weight: Tensor, gradient: Tensor, codes: Tensor) -> None:
        """See the base's."""
        self.base.learn_from_held(weight, gradient, codes)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return what the base decodes."""
        return self.base.decode(codes, scale)


@register_activation_quantizer("lsq_ewgs")
class EWGSActivation(LSQ):
    """LSQ with EWGS's gradient of the activation: dL/dy · (1 + δ·sign(dL/dy)·(u − round(u))).

    u = x/s; 0 outside the range, as in LSQ. The gradient of s is LSQ's.

    Args:
        bits: Bit-width, 2 to 8.
        axis: As in :class:`LSQ`.
        signed: Whether codes may be negative.
        delta: δ, 0 or above.

    Raises:
        UserError: The bit-width or δ isn't allowed.
    """

    def __init__(
        self,
        bits: int,
        axis: int | tuple[int, ...] | None = None,
        signed: bool = True,
        delta: float = 0.2,
    ) -> None:
        super().__init__(bits, axis, signed)
        self.delta = _check_delta(delta)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor; the first one sets the scales."""
        self.prepare(x)
        with torch.no_grad():
            position = x.float() / self.effective_scale(x)
            distance = position - position.round()
        return super().forward(_ElementWise.apply(x.float(), distance, self.delta))

    def product(self, product: type[Product], x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the product of the quantized ``x`` with other tensors."""
        # LSQ's own saves memory by a gradient of its own
        return ActivationQuantizer.product(self, product, x, *others)
