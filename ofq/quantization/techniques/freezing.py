"""Iterative weight freezing (Nagel et al. 2022, arXiv 2203.11086, section 4.3), a baseline."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ofq.quantization.layers import QuantizedWeight, parameter_weights, quantized_model
from ofq.quantization.oscillation import CodeHistory
from ofq.quantization.techniques.base import Technique, register_technique


class FreezingHistory(CodeHistory):
    """Codes of one weight, some frozen because they oscillate too often.

    After each step a weight whose frequency is above the threshold is frozen from then on, at
    round(average) of its codes, where average ← m·code + (1 − m)·average lags one step behind.
    While its frequency stays above the threshold, the value it is frozen at follows the average
    (released code, ``TrackOscillation``).

    Args:
        codes: The codes before the first step, int8.
        threshold: Frequency above which a weight freezes; it may be changed between steps.
        momentum: m.
        at_average: Whether weights freeze at their average code, or else at the code they have.

    Attributes:
        frozen: Which weights are frozen.
        frozen_codes: The codes that they are frozen at; 0 elsewhere.
        average: The running average of each weight's codes.
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
        """The codes with frozen weights at the values they are frozen at."""
        return torch.where(self.frozen, self.frozen_codes, codes)

    def observe(self, codes: Tensor) -> Tensor:
        """Take in the codes after one more step, and freeze what oscillates too often."""
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
    """Freezes weights of a model that oscillate too often, during QAT.

    :meth:`step` takes the place of ``optimizer.step()``. Frozen weights are put back on their
    level after every step, so that they follow a learned scale, which learns from them too; the
    threshold falls from ``start`` to ``end`` along a cosine. QKR's merged weight is a product of
    parameters, which can't be frozen entry by entry: it is left out.

    Args:
        model: A quantized model, as it is before the first step.
        start: First threshold of the oscillation frequency.
        end: Last threshold.
        momentum: m of frequency and average.
    """

    capturable = False

    def __init__(
        self, model: nn.Module, start: float = 0.04, end: float = 0.01, momentum: float = 0.01
    ) -> None:
        super().__init__()
        self.start, self.end = start, end
        self._weights = parameter_weights(quantized_model(model, "nothing to freeze: "))
        self.histories = nn.ModuleList(
            FreezingHistory(w.quantizer.codes(w.latent()), start, momentum) for w in self._weights
        )

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        """Let learned scales learn from the weights that are frozen."""
        for weight, history in self._pairs():
            gradient = weight.latent().grad
            if gradient is not None:
                held = torch.where(history.frozen, gradient, 0)
                weight.quantizer.learn_from_held(held, history.frozen_codes)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Freeze the weights that oscillate too often, and put all frozen ones on their level."""
        threshold = self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2
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
