"""Iterative weight freezing (Nagel et al. 2022, arXiv 2203.11086, section 4.3), a baseline."""

import torch
from torch import Tensor

from ofq.quantization.oscillation import CodeHistory


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

    def observe(self, codes: Tensor) -> None:
        """Take in the codes after one more step, and freeze what oscillates too often."""
        codes = self.hold(codes)
        super().observe(codes)
        exceeds = self.frequency > self.threshold
        target = self.average.round().to(codes.dtype) if self.at_average else codes
        self.frozen_codes = torch.where(exceeds, target, self.frozen_codes)
        self.frozen = self.frozen | exceeds
        self.average = self.momentum * codes + (1 - self.momentum) * self.average
