"""CGA: confidence-guided annealing (OFQ, section on CGA)."""

from functools import partial

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.attention import MergedQueryKey
from ofq.quantization.layers import QuantizedWeight, low_bit_weights, quantized_model
from ofq.quantization.quantizer import WeightQuantizer


def near_threshold(
    position: Tensor, boundary_range: float, lowest: int | Tensor, highest: int | Tensor
) -> Tensor:
    """Which weights lie inside the boundary range of a rounding threshold.

    Args:
        position: Positions on the quantization grid (:meth:`WeightQuantizer.position`).
        boundary_range: BR, half the band's width, in quantization steps.
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
    """Return ``boundary_range`` if a band around a threshold can be that wide.

    Raises:
        UserError: It can't.
    """
    if not 0 < boundary_range < 0.5:
        raise UserError(f"boundary_range {boundary_range}; allowed: above 0, below 0.5")
    return boundary_range


def step_optimizer(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Step an optimizer, through a gradient scaler if there is one."""
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)


class AsPaper:
    """Which weights are annealed, and which entries of them are trainable: as the paper has it.

    All low-bit weights are annealed, QKR's merged weight too.
    """

    def anneals(self, weight: QuantizedWeight) -> bool:
        """Whether a low-bit weight is annealed; otherwise it trains as before."""
        return True

    def trainable(
        self, position: Tensor, boundary_range: float, quantizer: WeightQuantizer
    ) -> Tensor:
        """Mask of the entries at these positions that may train in this step."""
        return near_threshold(position, boundary_range, quantizer.lowest, quantizer.highest)


class ConfidenceGuidedAnnealing:
    """Lets only low-confidence weights train: those inside the boundary range of a threshold.

    :meth:`step` takes the place of ``optimizer.step()``. Before each step, from the weights as
    they are, every low-bit weight outside the band is frozen for this step: its gradient is zeroed
    and its value restored afterwards, since momentum and weight decay would move it. A weight that
    leaves the band freezes there and then. On QKR's merged weight, entries outside the band pass
    no gradient to W_q and W_k. That begins as this object is made, so make it when annealing is to
    begin. Everything else keeps training.

    Args:
        model: A quantized model.
        boundary_range: BR, in quantization steps, in (0, 0.5).
        rule: Which weights and entries; :class:`ofq.quantization.released.AsReleased` follows the
            released code where it differs.
        compiled: Whether to compile what is done to each weight into one pass before and one after
            the optimizer's step; on the CPU that needs a C++ compiler, and takes some seconds at
            the first step.

    Raises:
        UserError: The boundary range isn't allowed, the model isn't quantized, or there is nothing
            to anneal.
    """

    def __init__(
        self,
        model: nn.Module,
        boundary_range: float = 0.005,
        rule: AsPaper | None = None,
        compiled: bool = False,
    ) -> None:
        self.boundary_range = check_boundary_range(boundary_range)
        self._rule = rule or AsPaper()
        model = quantized_model(model, "nothing to anneal: ")
        self._weights: list[tuple[nn.Parameter, WeightQuantizer]] = []
        for weight in filter(self._rule.anneals, low_bit_weights(model)):
            if isinstance(weight.owner, MergedQueryKey):
                weight.owner.trainable = partial(self._trainable, weight.quantizer)
            else:
                parameter = weight.latent()
                assert isinstance(parameter, nn.Parameter)
                self._weights.append((parameter, weight.quantizer))
        self._before, self._after = self._hold, _restore
        if compiled:
            self._before = torch.compile(self._hold, dynamic=True)
            self._after = torch.compile(_restore, dynamic=True)
        if not self._weights:
            raise UserError("nothing to anneal: the rule matches no low-bit weight of the model")

    @torch.no_grad()
    def step(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Step the optimizer with all high-confidence weights frozen.

        Args:
            optimizer: The optimizer.
            scaler: The gradient scaler to step it with, in mixed precision.
        """
        held = [self._before(p.detach(), p.grad, quantizer) for p, quantizer in self._weights]
        step_optimizer(optimizer, scaler)
        for (parameter, _), values in zip(self._weights, held, strict=True):
            self._after(parameter.detach(), values)

    @torch.no_grad()
    def frozen_share(self) -> float:
        """Percentage of the annealed weights that are frozen now, QKR's merged weight not counted.

        Waits for the device.
        """
        masks = [self._frozen(p, quantizer) for p, quantizer in self._weights]
        return 100 * float(sum(m.sum() for m in masks)) / sum(m.numel() for m in masks)

    def _hold(self, weight: Tensor, gradient: Tensor | None, quantizer: WeightQuantizer) -> Tensor:
        """Zero the gradient of frozen weights; return their values, and NaN for the others."""
        trainable = self._trainable(quantizer, quantizer.position(weight))
        if gradient is not None:
            gradient.copy_(torch.where(trainable, gradient, 0))
        return torch.where(trainable, torch.nan, weight)

    def _trainable(self, quantizer: WeightQuantizer, position: Tensor) -> Tensor:
        return self._rule.trainable(position, self.boundary_range, quantizer)

    def _frozen(self, parameter: Tensor, quantizer: WeightQuantizer) -> Tensor:
        return ~self._trainable(quantizer, quantizer.position(parameter))


def _restore(weight: Tensor, held: Tensor) -> None:
    torch.where(held.isnan(), weight, held, out=weight)
