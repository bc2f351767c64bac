"""CGA: confidence-guided annealing (OFQ, section on CGA), its ratio form, and two controls."""

from functools import partial

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.attention import MergedQueryKey
from ofq.quantization.layers import (
    QuantizedWeight,
    low_bit_weights,
    parameter_weights,
    quantized_model,
    with_latent_levels,
)
from ofq.quantization.quantizers.base import WeightQuantizer, check_boundary_range, near_threshold
from ofq.quantization.techniques.base import Technique, register_technique


class AsPaper:
    """Rule of the paper: apply CGA to all low-bit weights, including QKR's merged weight."""

    def anneals(self, weight: QuantizedWeight) -> bool:
        """Return whether CGA applies to a low-bit weight; otherwise it trains as before."""
        return True

    def trainable(
        self, position: Tensor, boundary_range: float, quantizer: WeightQuantizer
    ) -> Tensor:
        """Return a mask of the positions whose entries train in this step."""
        return near_threshold(position, boundary_range, quantizer.lowest, quantizer.highest)


class ConfidenceGuidedAnnealing(Technique):
    """CGA: trains only low-confidence weights, those inside the boundary range of a threshold.

    In a script, :meth:`step` replaces ``optimizer.step()``; the trainer calls the hooks around it.
    Before each step, every low-bit weight that is outside the boundary range at that time is frozen
    for this step: its gradient is zeroed and its value restored afterwards, since momentum and
    weight decay would change it. A weight that leaves the boundary range is frozen in the next
    step. In QKR's merged weight, entries
    outside the range pass no gradient to W_q and W_k; this takes effect on construction, so
    construct the object when CGA begins. All other parameters keep training.

    Args:
        model: A quantized model.
        boundary_range: BR, in quantization steps, in (0, 0.5).
        rule: Selects weights and entries; ``ofq.quantization.released.AsReleased`` follows
            the released code where it differs from the paper.
        compiled: Whether to :meth:`compile` on construction.

    Raises:
        UserError: The boundary range isn't allowed, the model isn't quantized, or the rule selects
            no weight.
    """

    def __init__(
        self,
        model: nn.Module,
        boundary_range: float = 0.005,
        rule: AsPaper | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.boundary_range = check_boundary_range(boundary_range)
        self._rule = rule or AsPaper()
        self._weights: list[tuple[nn.Parameter, WeightQuantizer]] = []
        self._held: list[Tensor] = []
        model = quantized_model(model, "nothing to anneal: ")
        for weight in filter(self._rule.anneals, low_bit_weights(model)):
            if isinstance(weight.owner, MergedQueryKey):
                weight.owner.gradient_mask = partial(self._trainable, weight.quantizer)
            else:
                parameter = weight.latent()
                assert isinstance(parameter, nn.Parameter)
                self._weights.append((parameter, weight.quantizer))
        if not self._weights:
            raise UserError("nothing to anneal: the rule matches no low-bit weight of the model")
        self._hold, self._restore = self._hold_eagerly, _restore
        if compiled:
            self.compile()

    def compile(self, *args: object, **kwargs: object) -> None:
        """Compile the operations on each weight into one pass before and one after the step.

        On the CPU this needs a C++ compiler, and some seconds at the first step.
        """
        self._hold = torch.compile(self._hold_eagerly, dynamic=True)
        self._restore = torch.compile(_restore, dynamic=True)

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        """Zero the gradients of high-confidence weights, and save their values."""
        self._held = [self._hold(p.detach(), p.grad, quantizer) for p, quantizer in self._weights]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Restore the values of high-confidence weights."""
        for (parameter, _), values in zip(self._weights, self._held, strict=True):
            self._restore(parameter.detach(), values)
        self._held = []

    @torch.no_grad()
    def frozen_share(self) -> float:
        """Return the percentage of weights under CGA that are frozen now; waits for the device.

        QKR's merged weight isn't counted.
        """
        return _share([~self._trainable(q, q.position(p)) for p, q in self._weights])

    def metrics(self) -> dict[str, float]:
        """Return ``frozen``: the percentage of weights under CGA that are frozen now."""
        return {"frozen": self.frozen_share()}

    def _hold_eagerly(
        self, weight: Tensor, gradient: Tensor | None, quantizer: WeightQuantizer
    ) -> Tensor:
        """Zero the gradient of frozen weights; return their values, and NaN for the others."""
        trainable = self._trainable(quantizer, quantizer.position(weight))
        if gradient is not None:
            gradient.copy_(torch.where(trainable, gradient, 0))
        return torch.where(trainable, torch.nan, weight)

    def _trainable(self, quantizer: WeightQuantizer, position: Tensor) -> Tensor:
        return self._rule.trainable(position, self.boundary_range, quantizer)


def _restore(weight: Tensor, held: Tensor) -> None:
    torch.where(held.isnan(), weight, held, out=weight)


def _share(masks: list[Tensor]) -> float:
    """Return the percentage of true entries."""
    return 100 * float(sum(m.sum() for m in masks)) / sum(m.numel() for m in masks)


@register_technique("cga")
def _cga(model: nn.Module, boundary_range: float = 0.005, rule: str = "as_paper") -> Technique:
    from ofq.quantization.released import AsReleased

    if rule not in ("as_paper", "as_released"):
        raise UserError(f"cga: rule '{rule}'; allowed: as_paper, as_released")
    selection = AsReleased(model) if rule == "as_released" else AsPaper()
    return ConfidenceGuidedAnnealing(model, boundary_range, selection)


@register_technique("freeze_all")
class FreezeAll(ConfidenceGuidedAnnealing):
    """Control for CGA that freezes every low-bit weight, near a threshold or not.

    Args:
        model: A quantized model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def _trainable(self, quantizer: WeightQuantizer, position: Tensor) -> Tensor:
        return torch.zeros_like(position, dtype=torch.bool)


@register_technique("no_freeze")
class NoFreeze(Technique):
    """Control for CGA that freezes nothing: training continues for as long as with CGA.

    Args:
        model: A quantized model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()


@register_technique("cga_ratio")
class RatioAnnealing(Technique):
    """CGA in ratio form: confidence by the distances to the nearest and the farthest level.

    The gradient of a weight is zeroed where its confidence c > ½, and multiplied by alpha
    elsewhere. Values are not restored, so decay still changes every weight, and momentum those
    whose gradient was not zero in earlier steps.

    Between the outermost levels nearest/farthest is at most 1/(2^b − 1), so with ``as_written`` c
    exceeds ½ only for weights more than 2^b − 1 steps outside them, and nearly none is frozen; with
    ``as_intended`` nearly all are. Neither singles out weights near a threshold. Under AdamW a
    constant alpha is the same as dividing its epsilon by alpha. QKR's merged weight, a product of
    parameters, is excluded.

    Args:
        model: A quantized model.
        alpha: Factor on gradients that aren't zeroed, in (0, 1].
        confidence: ``as_written``: c = nearest/farthest, highest for weights far outside the range
            of levels; ``as_intended``: 1 − that, highest for weights on a level.

    Attributes:
        intended: Whether the confidence is ``as_intended``.

    Raises:
        UserError: The confidence isn't allowed, or levels aren't values of weights.
    """

    capturable = False

    def __init__(
        self, model: nn.Module, alpha: float = 0.9, confidence: str = "as_written"
    ) -> None:
        super().__init__()
        if confidence not in ("as_written", "as_intended"):
            raise UserError(f"confidence '{confidence}'; allowed: as_written, as_intended")
        self.alpha = alpha
        self.intended = confidence == "as_intended"
        model = quantized_model(model, "nothing to anneal: ")
        self._weights = with_latent_levels(parameter_weights(model), "cga_ratio")

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        """Zero each gradient, or multiply it by alpha."""
        for weight in self._weights:
            gradient = weight.latent().grad
            if gradient is not None:
                gradient.mul_(self.alpha).masked_fill_(self._frozen(weight), 0)

    @torch.no_grad()
    def frozen_share(self) -> float:
        """Return the percentage of weights under CGA whose gradient is zeroed now."""
        return _share([self._frozen(weight) for weight in self._weights])

    def metrics(self) -> dict[str, float]:
        """Return ``frozen``: the percentage of weights under CGA whose gradient is zeroed now."""
        return {"frozen": self.frozen_share()}

    def _frozen(self, weight: QuantizedWeight) -> Tensor:
        latent, quantizer = weight.latent(), weight.quantizer
        nearest = (latent - quantizer(latent)).abs()
        limits = [quantizer.level(latent, code) for code in (quantizer.lowest, quantizer.highest)]
        farthest = torch.maximum(*((latent - level).abs() for level in limits))
        ratio = nearest / farthest
        return (1 - ratio if self.intended else ratio) > 0.5
