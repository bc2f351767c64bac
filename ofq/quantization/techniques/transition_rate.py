"""Transition-rate scheduling (Lee et al. 2025, arXiv 2404.19248): the rate of latent weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ofq.errors import UserError
from ofq.quantization.layers import parameter_weights, quantized_model
from ofq.quantization.techniques.base import Technique, check_number, register_technique


@register_technique("transition_rate")
class TransitionRate(Technique):
    """Learning rate of the latent weights by the share of codes that change, not by a schedule.

    The target R falls from ``target`` to 0 along a cosine. After each step, k is the share of all
    codes that changed in it, K ← m·K + (1 − m)·k, and U ← max(0, U + η·(R − K)); U is the learning
    rate of the latent weights in the next step. K starts at ``target``, U at the learning rate that
    the optimizer is made with. All else that is learned keeps its schedule. Weights of QKR's merged
    weight, which is a product of parameters, do too, and its codes aren't counted.

    In a script, call :meth:`attach` with the optimizer before the first step, and before a learning
    rate schedule is made.

    Args:
        model: A quantized model before its first step.
        target: R at the start, above 0, below 1.
        adaptation: η, above 0.
        momentum: m, from 0, below 1.

    Attributes:
        rate: U, float32.
        running: K, float32.
        previous: The codes after the last step, int8, of all weights in a row.

    Raises:
        UserError: The model has no low-bit weights that are parameters, or an option isn't allowed.
    """

    capturable = False  # R is a number in the code

    rate: Tensor
    running: Tensor
    previous: Tensor

    def __init__(
        self, model: nn.Module, target: float, adaptation: float, momentum: float = 0.99
    ) -> None:
        super().__init__()
        self.target = check_number("target", target, below=1)
        self.adaptation = check_number("adaptation", adaptation)
        self.momentum = check_number("momentum", momentum, below=1, zero=True)
        self._weights = parameter_weights(quantized_model(model, "no transitions: "))
        if not self._weights:
            raise UserError("no transitions: no low-bit weight of the model is a parameter")
        self._latent = {id(weight.latent()) for weight in self._weights}
        self._optimizer: Optimizer | None = None
        codes = self._codes()
        self.register_buffer("previous", codes)
        self.register_buffer("running", torch.full((), float(target), device=codes.device))
        self.register_buffer("rate", torch.zeros((), device=codes.device))

    def attach(self, optimizer: Optimizer) -> None:
        """Give the latent weights groups of their own, at the end of the optimizer's groups.

        Raises:
            UserError: The optimizer has none of them, or at different learning rates.
        """
        groups: list[dict[str, Any]] = []
        own: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            latent = [p for p in group["params"] if id(p) in self._latent]
            others = [p for p in group["params"] if id(p) not in self._latent]
            groups += [{**group, "params": others}] if others else []
            own += [{**group, "params": latent}] if latent else []
        rates = {float(group["lr"]) for group in own}
        if len(rates) != 1:
            given = ", ".join(f"{rate:g}" for rate in sorted(rates)) or "none"
            raise UserError(
                f"transition_rate: learning rates of the low-bit weights: {given}; allowed: one, "
                "that their common rate starts at"
            )
        optimizer.param_groups[:] = groups + own
        self._optimizer = optimizer
        self.rate.fill_(rates.pop())

    def before_step(self, progress: float) -> None:
        """Set the learning rate of the latent weights.

        Raises:
            UserError: :meth:`attach` wasn't called.
        """
        if self._optimizer is None:
            raise UserError("transition_rate: call attach(optimizer) before the first step")
        for group in self._optimizer.param_groups:
            if id(group["params"][0]) in self._latent:
                group["lr"] = self.rate  # a tensor, so that no step waits for the device

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Measure the transitions of this step, and adapt the rate to them."""
        codes = self._codes()
        changed = (codes != self.previous).sum() / codes.numel()
        self.previous.copy_(codes)
        self.running.mul_(self.momentum).add_(changed, alpha=1 - self.momentum)
        target = self.target * (1 + math.cos(math.pi * progress)) / 2
        self.rate.add_(target - self.running, alpha=self.adaptation).clamp_(min=0)

    def metrics(self) -> dict[str, float]:
        """Return ``transition_rate``, K, and ``latent_lr``, U."""
        return {"transition_rate": float(self.running), "latent_lr": float(self.rate)}

    def _codes(self) -> Tensor:
        return torch.cat([w.quantizer.codes(w.latent()).flatten() for w in self._weights])
