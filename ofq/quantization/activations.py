"""Base class and registry of activation quantizers."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.products import Product
from ofq.quantization.quantizers.base import check_bits
from ofq.registry import Registry


class ActivationQuantizer(nn.Module, ABC):
    """Base class of modules that fake-quantize an activation, with learnable state along an axis.

    The first tensor, in calibration, sets the state (:meth:`initialize`). Until then each parameter
    is empty; its size follows from that tensor, or from a checkpoint that is loaded.

    Args:
        bits: Bit-width, 2 to 8.
        axis: The dimension or dimensions along which the state has an entry per index; None for one
            entry.
        signed: Whether codes may be negative.

    Attributes:
        batch_ratio: Images that a gradient factor counts, as a multiple of those in one forward
            pass (:func:`ofq.quantization.set_gradient_batch`).
        awaits_calibration: Whether copying it before calibration is refused; set by
            :func:`ofq.quantize`.
        reader: Called with each tensor that is about to be quantized; None where nothing reads
            them. No kernel replaces a quantizer that has one.

    Raises:
        UserError: The bit-width isn't allowed.
    """

    batch_ratio: float = 1.0
    reader: Callable[[Tensor], None] | None = None
    awaits_calibration: bool = False  # set by quantize: no copy without scales

    def __init__(
        self, bits: int, axis: int | tuple[int, ...] | None = None, signed: bool = True
    ) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.axis = (axis,) if isinstance(axis, int) else tuple(axis or ())
        self.signed = signed

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest code."""
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    @abstractmethod
    def initialize(self, x: Tensor) -> None:
        """Set the state from a tensor, by assignment to ``.data``: parameters stay the same."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor differentiably, after a call of :meth:`prepare`."""

    def codes(self, x: Tensor) -> Tensor | None:
        """Return the integer code of each entry of ``x``, by which its oscillation is followed.

        Codes are ordered as the quantized values are. None, as here, if the quantizer doesn't say.
        """
        return None

    @property
    def is_set(self) -> bool:
        """Return whether the state is set."""
        return all(
            parameter.numel() > 0
            for parameter in self._parameters.values()
            if parameter is not None
        )

    def prepare(self, x: Tensor) -> None:
        """Set the state from a tensor if it isn't set yet, and show the tensor to the reader.

        Raises:
            UserError: The model isn't in float32.
        """
        if not self.is_set:
            self.initialize(x)
        for parameter in self._parameters.values():
            if parameter is not None and parameter.dtype != torch.float32:
                raise UserError(
                    f"the scales of a quantized model are {parameter.dtype}; allowed: "
                    "torch.float32 (model.float()); for lower precision run the model under "
                    "torch.autocast"
                )
        reader = self.reader
        if reader is not None:
            self.reader = None  # what it calls may quantize x itself
            reader(x)
            self.reader = reader

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if not self.is_set and self.awaits_calibration:
            raise UserError(
                "the model isn't calibrated, and a copy, such as for an exponential moving "
                "average, wouldn't have its activation scales; call ofq.calibrate(model, images) "
                "first, then copy"
            )
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin

    def reset(self) -> None:
        """Clear the state, so that the next tensor sets it."""
        for parameter in self.parameters(recurse=False):
            parameter.data = parameter.data.new_empty(0)

    def along_axis(self, values: Tensor, x: Tensor) -> Tensor:
        """Reshape state, a number per index of the axis, so that it broadcasts over ``x``.

        Raises:
            UserError: The tensor's axis differs in length from the state.
        """
        shape = [1] * x.ndim
        for dimension in self.axis:
            shape[dimension] = x.shape[dimension]
        if math.prod(shape) != values.numel():
            raise UserError(
                f"{type(self).__name__} has {values.numel()} scales along axis {self.axis}, but "
                f"the tensor has shape {tuple(x.shape)}; calibrate with inputs of the size used "
                "later"
            )
        return values.reshape(shape)

    def product(self, product: type[Product], x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the product of the quantized ``x`` with other tensors."""
        self.prepare(product.operand(x, *others))
        return product.forward(self(x), *others)

    def extra_repr(self) -> str:
        """Return bits, axis and sign for the module's repr."""
        return f"bits={self.bits}, axis={self.axis}, signed={self.signed}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # calibration data determine the size of the state, so take it from the checkpoint
        for name, parameter in self.named_parameters(recurse=False):
            loaded = state_dict.get(f"{prefix}{name}")
            if loaded is not None and loaded.shape != parameter.shape:
                parameter.data = parameter.data.new_empty(loaded.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


_Quantizer = TypeVar("_Quantizer", bound=Callable[..., ActivationQuantizer])
activation_quantizers: Registry[Callable[..., ActivationQuantizer]] = Registry(
    "activation quantizer", ActivationQuantizer
)


def register_activation_quantizer(name: str) -> Callable[[_Quantizer], _Quantizer]:
    """Return a class decorator that registers an activation quantizer under a name.

    The class is called with bits, axis and sign, and with the method's options as keywords.

    Raises:
        UserError: The class is no :class:`ActivationQuantizer`, or another one has the name.
    """
    return activation_quantizers.register(name)


def make_activation_quantizer(
    name: str,
    bits: int,
    axis: int | tuple[int, ...] | None,
    signed: bool,
    options: Mapping[str, float] | None = None,
) -> ActivationQuantizer:
    """Make a registered activation quantizer.

    Args:
        name: The registered name.
        bits: Bit-width.
        axis: As in :class:`ActivationQuantizer`.
        signed: Whether codes may be negative.
        options: Further keyword arguments of the quantizer.

    Raises:
        UserError: No quantizer has this name, or it doesn't accept these bits or options.
    """
    activation_quantizers.check_options(name, options or {}, fixed=3)
    quantizer: ActivationQuantizer = activation_quantizers.make(
        name, bits, axis, signed, **(options or {})
    )
    return quantizer
