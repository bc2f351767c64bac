"""Base class and registry of weight quantizers, and rounding thresholds."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.registry import Registry

OFF = 32
"""Bit-width that means "not quantized"."""


class WeightQuantizer(nn.Module, ABC):
    """Base class of modules that fake-quantize a weight, with rows along its first dimension.

    A subclass defines the quantization scale (:meth:`scale`), the distance between levels
    (:meth:`step_size`), the position of each weight on the grid (:meth:`position`), and its
    quantized value and gradient (:meth:`forward`). Codes, CGA, the oscillation tracker and the
    baselines use only these.

    Args:
        bits: Bit-width, 2 to 8; codes run from ``-2**(bits-1)`` to ``2**(bits-1) - 1``.

    Attributes:
        lowest: The lowest code.
        highest: The highest code.
        latent_levels: Whether a weight that equals a level has its code. Techniques that compare
            weights with levels, or set them to levels, refuse other quantizers.

    Raises:
        UserError: The bit-width isn't allowed.
    """

    latent_levels = True

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.lowest = -(2 ** (bits - 1))
        self.highest = 2 ** (bits - 1) - 1

    @abstractmethod
    def scale(self, weight: Tensor) -> Tensor:
        """Return the scale from which :meth:`decode` makes levels, float32.

        LSQ's is the step size, StatsQ's the clipping range. It broadcasts over the weight.
        """

    @abstractmethod
    def step_size(self, weight: Tensor) -> Tensor:
        """Return the distance between adjacent levels, broadcastable over the weight."""

    @abstractmethod
    def position(self, weight: Tensor) -> Tensor:
        """Return the position of each weight on the grid, in quantization steps.

        A weight's code is the integer nearest to its position; half-integers between the lowest and
        the highest code are the rounding thresholds. float32, of the weight's shape, without
        gradient.
        """

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight, of the same shape, with a straight-through gradient."""

    def initialize(self, weight: Tensor) -> None:
        """Set learnable state from the weight to quantize; by default, do nothing."""

    def codes(self, weight: Tensor) -> Tensor:
        """Return the integer code of each weight, int8, rounded as in the forward pass."""
        return self.position(weight).round_().to(torch.int8)

    @torch.no_grad()
    def level(self, weight: Tensor, codes: Tensor | int) -> Tensor:
        """Return the value that each weight would have if it were quantized to the given codes."""
        own = self.position(weight).round_()
        return self(weight) + (codes - own) * self.step_size(weight)

    def clipped(self, weight: Tensor) -> Tensor:
        """Return the weight, clipped to the range of levels; none of its gradient is a scale's."""
        low, high = (self.level(weight, code) for code in (self.lowest, self.highest))
        return weight.clamp(low, high)

    def learn_from_held(self, weight: Tensor, gradient: Tensor, codes: Tensor) -> None:
        """Add to a learned scale's gradient the contribution of weights frozen at codes.

        A frozen weight lies on its level and follows the scale, which the scale's own gradient
        doesn't account for. The default, for quantizers without a learned scale, does nothing.

        Args:
            weight: The weight before quantization.
            gradient: Gradient of the quantized weight, of its shape; 0 where weights aren't frozen.
            codes: Codes that weights are frozen at.
        """

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return the quantized weight of codes, exactly equal to the result of :meth:`forward`.

        Only the export of models requires it, so implementing it is optional.

        Args:
            codes: float32, of the weight's shape.
            scale: Result of :meth:`scale`.

        Raises:
            UserError: This quantizer doesn't implement it.
        """
        raise UserError(
            f"{type(self).__name__} has no decode(codes, scale), which exporting a model needs"
        )

    def extra_repr(self) -> str:
        """Return the bit-width for the module's repr."""
        return f"bits={self.bits}"


def check_bits(bits: int) -> int:
    """Return ``bits``, or refuse a bit-width that quantizers don't support.

    Raises:
        UserError: It isn't an integer from 2 to 8.
    """
    if bits not in range(2, 9):
        raise UserError(f"{bits} bits; allowed: 2 to 8 (32 leaves a part unquantized)")
    return bits


def near_threshold(
    position: Tensor, boundary_range: float, lowest: int | Tensor, highest: int | Tensor
) -> Tensor:
    """Return a mask of the weights inside the boundary range of a rounding threshold.

    Args:
        position: Positions on the quantization grid (:meth:`WeightQuantizer.position`).
        boundary_range: BR, the largest distance to a threshold, in quantization steps.
        lowest: The lowest code.
        highest: The highest code; thresholds lie half-way between adjacent codes.

    Returns:
        Mask of the positions' shape; true where |position − (i + ½)| ≤ BR for some i in
        [lowest, highest − 1].
    """
    below = position.floor()
    part = position - below
    inside = (part >= 0.5 - boundary_range) & (part <= 0.5 + boundary_range)
    return inside & (below >= lowest) & (below < highest)


def check_boundary_range(boundary_range: float) -> float:
    """Return ``boundary_range``, or refuse one that isn't allowed.

    Raises:
        UserError: It isn't in (0, 0.5).
    """
    if not 0 < boundary_range < 0.5:
        raise UserError(f"boundary_range {boundary_range}; allowed: above 0, below 0.5")
    return boundary_range


def check_factor(factor: float) -> float:
    """Return the factor of a scale, or refuse one that isn't allowed.

    Raises:
        UserError: It isn't a finite number above 0.
    """
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise UserError(f"factor {factor!r}; allowed: a finite number above 0")
    return factor


def check_gradient(gradient: str) -> bool:
    """Return whether a weight quantizer's gradient is the identity for every weight.

    Args:
        gradient: ``everywhere``, or ``inside`` if the gradient of weights outside the range of the
            levels is 0.

    Raises:
        UserError: It is neither.
    """
    if gradient not in ("everywhere", "inside"):
        raise UserError(f"gradient {gradient!r}; allowed: 'everywhere', 'inside'")
    return gradient == "everywhere"


class _StraightThrough(torch.autograd.Function):
    """Straight-through estimator: the second argument's value, the gradient to the first."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(weight: Tensor, quantized: Tensor) -> Tensor:
    """Return ``quantized``, with its gradient passed to ``weight`` (straight-through estimator)."""
    return _StraightThrough.apply(weight, quantized)


def zero_with_gradient(weight: Tensor) -> Tensor:
    """Return zeros whose gradient passes to ``weight`` unchanged, float32.

    Added to what is computed from the detached weight, they make its gradient the identity.
    """
    weight = weight.float()
    return weight - weight.detach()


_Quantizer = TypeVar("_Quantizer", bound=Callable[..., WeightQuantizer])
weight_quantizers: Registry[Callable[..., WeightQuantizer]] = Registry(
    "weight quantizer", WeightQuantizer
)
"""Constructor of every weight quantizer by name."""


def register_weight_quantizer(name: str) -> Callable[[_Quantizer], _Quantizer]:
    """Return a class decorator that registers a weight quantizer under a name.

    Example:
        >>> import ofq
        >>> @ofq.register_weight_quantizer("statsq_copy")
        ... class Copy(ofq.StatsQ):
        ...     '''StatsQ under another name.'''

    Raises:
        UserError: The class is no :class:`WeightQuantizer`, or another one has the name.
    """
    return weight_quantizers.register(name)


def make_weight_quantizer(
    name: str, bits: int, weight: Tensor, options: Mapping[str, float | str] | None = None
) -> nn.Module:
    """Make a registered weight quantizer for a weight, or an identity at 32 bits.

    Args:
        name: The registered name.
        bits: Bit-width.
        weight: The weight to quantize, which sets the quantizer's learnable state.
        options: Keyword arguments of the quantizer other than its bits.

    Raises:
        UserError: No quantizer has this name, or it doesn't accept these bits or options.
    """
    check_options(name, options or {})
    if bits == OFF:
        return nn.Identity()
    quantizer: WeightQuantizer = weight_quantizers.make(name, bits, **(options or {}))
    quantizer.to(weight.device)
    quantizer.initialize(weight.detach())
    return quantizer


def check_options(name: str, options: Mapping[str, float | str]) -> None:
    """Refuse an unknown weight quantizer, and options that the quantizer doesn't accept.

    Raises:
        UserError: The name or an option isn't allowed; the message lists those that are.
    """
    weight_quantizers.check_options(name, options, fixed=1)
