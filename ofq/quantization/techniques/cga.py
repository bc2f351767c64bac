"""CGA: confidence-guided annealing (OFQ, section on CGA), its ratio form, and its two controls."""

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
)
from ofq.quantization.quantizers.base import WeightQuantizer, check_boundary_range, near_threshold
from ofq.quantization.techniques.base import Technique, register_technique


class AsPaper:
    """Rule of the paper: anneal all low-bit weights, QKR's merged weight too."""

    def anneals(self, weight: QuantizedWeight) -> bool:
        """Return whether a low-bit weight is annealed; otherwise it trains as before."""
        return True

    def trainable(
        self, position: Tensor, boundary_range: float, quantizer: WeightQuantizer
    ) -> Tensor:
        """Return the mask of the entries at these positions that may train in this step."""
        return near_threshold(position, boundary_range, quantizer.lowest, quantizer.highest)


class ConfidenceGuidedAnnealing(Technique):
    """Lets only low-confidence weights train: those inside the boundary range of a threshold.

    :meth:`step` takes the place of ``optimizer.step()``. Before each step, from the weights as
    they are, every low-bit weight outside the boundary range is frozen for this step: its gradient
    is zeroed and its value restored afterwards, since momentum and weight decay would move it. A
    weight that leaves the boundary range freezes there and then. On QKR's merged weight, entries
    outside it pass no gradient to W_q and W_k. That begins as this object is made, so make it when
    annealing is to begin. Everything else keeps training.

    Args:
        model: A quantized model.
        boundary_range: BR, in quantization steps, in (0, 0.5).
        rule: Which weights and entries; :class:`ofq.quantization.released.AsReleased` follows the
            released code where it differs.
        compiled: Whether to :meth:`compile` at once.

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
        super().__init__()
        self.boundary_range = check_boundary_range(boundary_range)
        self._rule = rule or AsPaper()
        self._weights: list[tuple[nn.Parameter, WeightQuantizer]] = []
        self._held: list[Tensor] = []
        model = quantized_model(model, "nothing to anneal: ")
        for weight in filter(self._rule.anneals, low_bit_weights(model)):
            if isinstance(weight.owner, MergedQueryKey):
                weight.owner.trainable = partial(self._trainable, weight.quantizer)
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
        """Compile what is done to each weight into one pass before and one after the step.

        On the CPU that needs a C++ compiler, and takes some seconds at the first step.
        """
        self._hold = torch.compile(self._hold_eagerly, dynamic=True)
        self._restore = torch.compile(_restore, dynamic=True)

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        """Zero the gradients of high-confidence weights, and remember their values."""
        self._held = [self._hold(p.detach(), p.grad, quantizer) for p, quantizer in self._weights]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Restore the values of high-confidence weights."""
        for (parameter, _), values in zip(self._weights, self._held, strict=True):
            self._restore(parameter.detach(), values)
        self._held = []

    @torch.no_grad()
    def frozen_share(self) -> float:
        """Return the percentage of annealed weights that are frozen now; waits for the device.

        QKR's merged weight isn't counted.
        """
        return _share([~self._trainable(q, q.position(p)) for p, q in self._weights])

    def metrics(self) -> dict[str, float]:
        """Return ``frozen``: the percentage of the annealed weights that are frozen now."""
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
    made = AsReleased(model) if rule == "as_released" else AsPaper()
    return ConfidenceGuidedAnnealing(model, boundary_range, made)


@register_technique("freeze_all")
class FreezeAll(ConfidenceGuidedAnnealing):
    """Control beside CGA that freezes every low-bit weight, near a threshold or not.

    Args:
        model: A quantized model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def _trainable(self, quantizer: WeightQuantizer, position: Tensor) -> Tensor:
        return torch.zeros_like(position, dtype=torch.bool)


@register_technique("no_freeze")
class NoFreeze(Technique):
    """Control beside CGA that freezes nothing: training goes on for as long as with CGA.

    Args:
        model: A quantized model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()


@register_technique("cga_ratio")
class RatioAnnealing(Technique):
    """CGA in ratio form: gradients by the distances to the nearest and the farthest level.

    With confidence c of a weight, its gradient is zeroed where c > ½, and multiplied by alpha
    elsewhere; values are not restored, so momentum and decay still move every weight.

    Between the outermost levels nearest/farthest is at most 1/(2^b − 1), so read as written c
    exceeds ½ only for weights more than 2^b − 1 steps outside them, and nearly nothing is frozen;
    read as intended, nearly everything is. Neither singles out weights near a threshold. QKR's
    merged weight, a product of parameters, is left out.

    Args:
        model: A quantized model.
        alpha: Factor on the gradients that pass, in (0, 1].
        confidence: ``as_written``: c = nearest/farthest, highest for weights far outside the range
            of levels; ``as_intended``: 1 − that, highest for weights on a level.

    Raises:
        UserError: Another confidence.
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
        self._weights = parameter_weights(quantized_model(model, "nothing to anneal: "))

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        """Zero or damp the gradients."""
        for weight in self._weights:
            gradient = weight.latent().grad
            if gradient is not None:
                gradient.mul_(self.alpha).masked_fill_(self._frozen(weight), 0)

    @torch.no_grad()
    def frozen_share(self) -> float:
        """Return the percentage of annealed weights whose gradient is zeroed now."""
        return _share([self._frozen(weight) for weight in self._weights])

    def metrics(self) -> dict[str, float]:
        """Return ``frozen``: the percentage of annealed weights whose gradient is zeroed now."""
        return {"frozen": self.frozen_share()}

    def _frozen(self, weight: QuantizedWeight) -> Tensor:
        latent, quantizer = weight.latent(), weight.quantizer
        nearest = (latent - quantizer(latent)).abs()
        ends = [quantizer.level(latent, code) for code in (quantizer.lowest, quantizer.highest)]
        farthest = torch.maximum(*((latent - end).abs() for end in ends))
        ratio = nearest / farthest
        return (1 - ratio if self.intended else ratio) > 0.5
