"""Sign changes of gradients, near thresholds and anywhere (paper, Figure 4)."""

import torch
from torch import Tensor, nn

from ofq.quantization.layers import QuantizedWeight
from ofq.training.probes.probe import Probe, Rows, entries, to_host, to_threshold

BOUNDARY_RANGES = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Boundary ranges BR_x in which sign changes are counted, in quantization steps."""


class SignChanges(Probe):
    """Counts of sign changes of gradients from step to step, for a fixed sample of weights.

    A weight is counted at step t if its gradients at t and t − 1 aren't zero, and inside BR_x if
    |position − (i + ½)| ≤ x for a threshold i + ½, with the position at which the gradient of t is
    computed. Gradients are those of the loss, before CGA masks them. QKR's merged weight is a
    product of parameters and has no gradient of its own; it is left out.

    Args:
        weights: The model's low-bit weights.
        count: Entries in the sample, for each role of a weight matrix.
    """

    table = "sign_changes"
    sign: Tensor
    position: Tensor
    counts: Tensor
    role: Tensor
    widths: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, weights: list[QuantizedWeight], count: int) -> None:
        super().__init__()
        own = {i: w for i, w in enumerate(weights) if isinstance(w.latent(), nn.Parameter)}
        self.parameters_of = {i: w.latent() for i, w in own.items()}
        self.roles = list(dict.fromkeys(role for w in own.values() for role in w.roles))
        role, lowest, highest = [], [], []
        for index, weight in own.items():
            latent = weight.latent()
            parts = [entries(rows, latent.shape[1], count) for rows in weight.roles.values()]
            self.register_buffer(
                f"entries_{index}", torch.cat(parts).to(latent.device), persistent=False
            )
            for name, part in zip(weight.roles, parts, strict=True):
                role += [self.roles.index(name)] * len(part)
                lowest += [weight.quantizer.lowest] * len(part)
                highest += [weight.quantizer.highest] * len(part)
        device = weights[0].latent().device
        for name, values in (("role", role), ("lowest", lowest), ("highest", highest)):
            self.register_buffer(name, torch.tensor(values, device=device), persistent=False)
        widths = torch.tensor([*BOUNDARY_RANGES, torch.inf], device=device)
        self.register_buffer("widths", widths, persistent=False)
        self.register_buffer("sign", torch.zeros(len(role), device=device))
        self.register_buffer("position", torch.zeros(len(role), device=device))
        shape = (len(self.roles), len(BOUNDARY_RANGES) + 1, 2)
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.int64, device=device))
        self._seen: list[Tensor] = []

    def before_step(self) -> None:
        """Compare the gradients with those of the step before."""
        gradients = [
            torch.zeros_like(self.get_buffer(f"entries_{index}"), dtype=torch.float32)
            if parameter.grad is None
            else parameter.grad.flatten()[self.get_buffer(f"entries_{index}")].float()
            for index, parameter in self.parameters_of.items()
        ]
        sign = torch.cat(gradients).sign()
        product = sign * self.sign
        distance = to_threshold(self.position, self.lowest, self.highest)
        inside_SX = distance.unsqueeze(-1) <= self.widths
        counted_S2 = torch.stack([product != 0, product < 0], dim=-1)
        counted_SX2 = inside_SX.unsqueeze(-1) & counted_S2.unsqueeze(1)
        self.counts.index_add_(0, self.role, counted_SX2.long())
        self.sign.copy_(sign)

    def see(self, index: int, latent: Tensor, position: Tensor, slot: int) -> None:
        """Read the current positions of a weight's sampled entries."""
        if index in self.parameters_of:
            self._seen.append(position.flatten()[self.get_buffer(f"entries_{index}")])

    def seen(self, slot: int) -> None:
        """Store the positions; before a window, forget the gradients of the previous window."""
        self.position.copy_(torch.cat(self._seen))
        self._seen.clear()
        if slot < 0:
            self.sign.zero_()

    def take(self, epoch: int, step: int) -> Rows:
        """Return a row per role and BR_x; BR None counts weights anywhere."""
        counts = to_host([self.counts])[0].tolist()
        self.counts.zero_()
        return [
            {
                "epoch": epoch,
                "step": step,
                "role": role,
                "boundary_range": width,
                "pairs": pairs,
                "changes": changes,
            }
            for role, of_role in zip(self.roles, counts, strict=True)
            for width, (pairs, changes) in zip((*BOUNDARY_RANGES, None), of_role, strict=True)
        ]
