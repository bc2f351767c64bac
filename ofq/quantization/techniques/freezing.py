"""Iterative weight freezing (Nagel et al. 2022, arXiv 2203.11086, section 4.3), a baseline."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ofq.quantization.layers import (
    QuantizedWeight,
    parameter_weights,
    quantized_model,
    with_latent_levels,
)
from ofq.quantization.oscillation import CodeHistory
from ofq.quantization.techniques.base import (
    Technique,
    check_begin,
    register_technique,
    scheduled,
)


class FreezingHistory(CodeHistory):
    """History of the codes of one weight, of which those that oscillate too often are frozen.

    An entry whose frequency is above the threshold after a step is frozen from then on, at
    round(average) of its codes, where average ← m·code + (1 − m)·average lags one step behind.
    While its frequency stays above the threshold, the code it is frozen at follows the average
    (released code, ``TrackOscillation``).

    Args:
        codes: The codes before the first step, int8.
        threshold: Frequency above which a weight is frozen; may be changed between steps.
        momentum: m.
        at_average: Whether weights are frozen at their average code rather than their current one.

    Attributes:
        frozen: Mask of the frozen weights.
        frozen_codes: Codes that they are frozen at; 0 elsewhere.
        average: Running average of each weight's codes.
    """

    frozen: Tensor
    frozen_codes: Tensor
    average: Tensor

    def __init__(
        self, codes: Tensor, threshold: float, momentum: float = 0.01, at_average: bool = True
    ) -> None:
        super().__init__(codes, momentum)
        self.threshold = threshold
        self.at_average = at_average
        self.register_buffer("frozen", torch.zeros_like(codes, dtype=torch.bool))
        self.register_buffer("frozen_codes", torch.zeros_like(codes))
        self.register_buffer("average", codes.float())

    def hold(self, codes: Tensor) -> Tensor:
        """Replace the codes of frozen weights by those that they are frozen at."""
        return torch.where(self.frozen, self.frozen_codes, codes)

    def observe(self, codes: Tensor) -> Tensor:
        """Update the history with the codes after one more step, and freeze by frequency."""
        codes = self.hold(codes)
        oscillated = super().observe(codes)
        exceeds = self.frequency > self.threshold
        target = self.average.round().to(codes.dtype) if self.at_average else codes
        self.frozen_codes = torch.where(exceeds, target, self.frozen_codes)
        self.frozen = self.frozen | exceeds
        self.average = self.momentum * codes + (1 - self.momentum) * self.average
        return oscillated


@register_technique("freezing")
class IterativeFreezing(Technique):
    """Iterative freezing, during QAT, of weights that oscillate too often.

    :meth:`step` replaces ``optimizer.step()``. Frozen weights are reset to their level after every
    step, so that they follow a learned scale, whose gradient includes them; the threshold decreases
    from ``start`` to ``end`` along a cosine. QKR's merged weight is excluded: it is a product of
    parameters, which can't be frozen entry by entry.

    Args:
        model: A quantized model before its first step.
        start: Initial threshold of the oscillation frequency.
        end: Final threshold.
        momentum: m of frequency and average.
        begin: Share of the training after which weights are frozen and the threshold falls, in
            [0, 1); until then oscillation is only tracked.

    Attributes:
        histories: History of each weight, with what is frozen of it.

    Raises:
        UserError: The share isn't allowed, or levels aren't values of weights.
    """

    capturable = False

    def __init__(
        self,
        model: nn.Module,
        start: float = 0.04,
        end: float = 0.01,
        momentum: float = 0.01,
        begin: float = 0.0,
    ) -> None:
        super().__init__()
        self.start, self.end = start, end
        self.begin = check_begin(begin)
        model = quantized_model(model, "nothing to freeze: ")
        self._weights = with_latent_levels(parameter_weights(model), "freezing")
        self.histories = nn.ModuleList(
            FreezingHistory(w.quantizer.codes(w.latent()), start, momentum) for w in self._weights
        )

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        """Add the contribution of frozen weights to the gradients of learned scales."""
        for weight, history in self._pairs():
            latent = weight.latent()
            if latent.grad is not None:
                held = torch.where(history.frozen, latent.grad, 0)
                weight.quantizer.learn_from_held(latent, held, history.frozen_codes)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Freeze the weights that oscillate too often, and reset all frozen ones to their level."""
        done = scheduled(progress, self.begin)
        threshold = self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2
        if progress < self.begin:
            threshold = math.inf
        for weight, history in self._pairs():
            latent, quantizer = weight.latent(), weight.quantizer
            history.threshold = threshold
            history.observe(quantizer.codes(latent))
            level = quantizer.level(latent, history.frozen_codes)
            torch.where(history.frozen, level, latent, out=latent)

    @torch.no_grad()
    def frozen_share(self) -> float:
        """Return the percentage of weights that are frozen; waits for the device."""
        frozen = [history.frozen for _, history in self._pairs()]
        return 100 * float(sum(f.sum() for f in frozen)) / sum(f.numel() for f in frozen)

    def metrics(self) -> dict[str, float]:
        """Return ``frozen``: the percentage of weights that are frozen."""
        return {"frozen": self.frozen_share()}

    def _pairs(self) -> Iterator[tuple[QuantizedWeight, FreezingHistory]]:
        for weight, history in zip(self._weights, self.histories, strict=True):
            assert isinstance(history, FreezingHistory)
            yield weight, history
