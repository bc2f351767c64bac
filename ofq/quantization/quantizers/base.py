"""What every weight quantizer offers, and the registry by which methods name them."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ofq.errors import UserError

OFF = 32
"""The bit-width that stands for "not quantized"."""


class WeightQuantizer(nn.Module, ABC):
    """Fake-quantizes a weight whose rows run over its first dimension.

    A subclass says what the quantization scale is (:meth:`scale`), how far apart levels are
    (:meth:`step_size`), where each weight lies on the grid (:meth:`position`), and what its
    quantized value and gradient are (:meth:`forward`). Codes, CGA, the oscillation tracker and
    the baselines all follow from these.

    Args:
        bits: Bit-width, 2 to 8; codes run from ``-2**(bits-1)`` to ``2**(bits-1) - 1``.

    Raises:
        UserError: Another bit-width.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.lowest = -(2 ** (bits - 1))
        self.highest = 2 ** (bits - 1) - 1

    @abstractmethod
    def scale(self, weight: Tensor) -> Tensor:
        """The quantization scale, float32, in a shape that broadcasts over the weight."""

    @abstractmethod
    def step_size(self, weight: Tensor) -> Tensor:
        """The distance between adjacent levels, in a shape that broadcasts over the weight."""

    @abstractmethod
    def position(self, weight: Tensor) -> Tensor:
        """Where each weight lies, in quantization steps; its code is the nearest integer.

        Half-integers between the lowest and the highest code are the rounding thresholds. float32,
        of the weight's shape, without gradient.
        """

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight, of the same shape, differentiable by a straight-through rule."""

    def initialize(self, weight: Tensor) -> None:
        """Set learnable state from the weight that will be quantized."""

    def codes(self, weight: Tensor) -> Tensor:
        """The integer code of each weight, as int8, by the rounding that the forward pass uses."""
        return self.position(weight).round_().to(torch.int8)

    @torch.no_grad()
    def level(self, weight: Tensor, codes: Tensor | int) -> Tensor:
        """The value that each weight would have if it were quantized to other codes."""
        own = self.position(weight).round_()
        return self(weight) + (codes - own) * self.step_size(weight)

    def learn_from_held(self, gradient: Tensor, codes: Tensor) -> None:
        """Add to a learned scale's gradient what weights contribute that are held at codes.

        Such a weight lies on its level, where a learned scale's own gradient doesn't see it, and
        follows the scale. A quantizer without a learned scale has nothing to do.

        Args:
            gradient: Of the quantized weight, 0 where weights aren't held; of the weight's shape.
            codes: Those that weights are held at.
        """

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The quantized weight that codes stand for, bit by bit as :meth:`forward` computes it.

        Only exporting a model needs it, so a quantizer may do without.

        Args:
            codes: float32, of the weight's shape.
            scale: As :meth:`scale` gives it.

        Raises:
            UserError: This quantizer does without.
        """
        raise UserError(
            f"{type(self).__name__} has no decode(codes, scale), which exporting a model needs"
        )

    def extra_repr(self) -> str:
        """The bit-width."""
        return f"bits={self.bits}"


def check_bits(bits: int) -> int:
    """Return ``bits`` if it is a bit-width that quantizers can have.

    Raises:
        UserError: It isn't an integer of 2 to 8.
    """
    if bits not in range(2, 9):
        raise UserError(f"{bits} bits; allowed: 2 to 8 (32 leaves a part unquantized)")
    return bits


def near_threshold(
    position: Tensor, boundary_range: float, lowest: int | Tensor, highest: int | Tensor
) -> Tensor:
    """Return which weights lie inside the boundary range of a rounding threshold.

    Args:
        position: Positions on the quantization grid (:meth:`WeightQuantizer.position`).
        boundary_range: BR, the largest distance to a threshold, in quantization steps.
        lowest: The lowest code; thresholds lie half-way between adjacent codes from here
        highest: to here.

    Returns:
        Mask of the position's shape; true where |position − (i + ½)| ≤ BR for some i in
        [lowest, highest − 1].
    """
    below = position.floor()
    part = position - below
    inside = (part >= 0.5 - boundary_range) & (part <= 0.5 + boundary_range)
    return inside & (below >= lowest) & (below < highest)


def check_boundary_range(boundary_range: float) -> float:
    """Return ``boundary_range`` if it is one that a threshold can have.

    Raises:
        UserError: It isn't in (0, 0.5).
    """
    if not 0 < boundary_range < 0.5:
        raise UserError(f"boundary_range {boundary_range}; allowed: above 0, below 0.5")
    return boundary_range


class _StraightThrough(torch.autograd.Function):
    """Passes the second argument forward and the gradient back to the first, unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(weight: Tensor, quantized: Tensor) -> Tensor:
    """The value of ``quantized`` with the gradient of ``weight`` (straight-through estimator)."""
    return _StraightThrough.apply(weight, quantized)


_REGISTRY: dict[str, Callable[..., WeightQuantizer]] = {}
_Quantizer = TypeVar("_Quantizer", bound=Callable[..., WeightQuantizer])


def register_weight_quantizer(name: str) -> Callable[[_Quantizer], _Quantizer]:
    """Class decorator that makes a weight quantizer available under a name.

    Example:
        >>> import ofq
        >>> @ofq.register_weight_quantizer("statsq_copy")
        ... class Copy(ofq.StatsQ):
        ...     '''StatsQ under another name.'''

    Raises:
        UserError: It is no weight quantizer, or the name is taken by another one.
    """

    def register(quantizer: _Quantizer) -> _Quantizer:
        if isinstance(quantizer, type) and not issubclass(quantizer, WeightQuantizer):
            raise UserError(f"weight quantizer '{name}': {quantizer} is no ofq.WeightQuantizer")
        if name in _REGISTRY and not _same(_REGISTRY[name], quantizer):
            raise UserError(f"a weight quantizer named '{name}' is already registered")
        _REGISTRY[name] = quantizer
        return quantizer

    return register


def _same(one: object, other: object) -> bool:
    """Whether two are one, or the one defined anew, as by a cell of a notebook."""
    places = [(getattr(o, "__module__", o), getattr(o, "__qualname__", o)) for o in (one, other)]
    return places[0] == places[1]


def weight_quantizer_names() -> list[str]:
    """The names under which weight quantizers are registered."""
    return sorted(_REGISTRY)


def registered_name(quantizer: WeightQuantizer) -> str:
    """The name under which a weight quantizer is registered; if it isn't, its class's."""
    names = (name for name, made in _REGISTRY.items() if made is type(quantizer))
    return next(names, type(quantizer).__name__)


def make_weight_quantizer(
    name: str, bits: int, weight: Tensor, options: Mapping[str, float] | None = None
) -> nn.Module:
    """A registered weight quantizer for a weight, or an identity at 32 bits.

    Args:
        name: The registered name.
        bits: Bit-width.
        weight: What will be quantized; sets the quantizer's learnable state.
        options: What the quantizer takes beside its bits.

    Raises:
        UserError: No quantizer has this name, or it doesn't take these bits or options.
    """
    check_options(name, options or {})
    if bits == OFF:
        return nn.Identity()
    try:
        quantizer = _REGISTRY[name](bits, **(options or {})).to(weight.device)
    except TypeError as error:
        raise UserError(f"weight quantizer '{name}': {error}") from None
    quantizer.initialize(weight.detach())
    return quantizer


def check_options(name: str, options: Mapping[str, float]) -> None:
    """Refuse the name of no weight quantizer, and options that it doesn't take.

    Raises:
        UserError: It names what is allowed.
    """
    if name not in _REGISTRY:
        allowed = ", ".join(weight_quantizer_names())
        raise UserError(f"unknown weight quantizer '{name}'; allowed: {allowed}")
    try:
        taken = inspect.signature(_REGISTRY[name]).parameters.values()
    except ValueError:  # one that Python can't look into
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return
    names = [parameter.name for parameter in taken if parameter.name != "bits"]
    for option in options:
        if option not in names:
            raise UserError(
                f"weight quantizer '{name}': unknown option '{option}'; "
                f"allowed: {', '.join(names) or 'none'}"
            )
