"""Flips and oscillations of the codes of activations, on fixed images."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofq.config.stage import Precision
from ofq.errors import UserError
from ofq.models.compiling import uncompiled
from ofq.quantization.layers import QuantizedActivation
from ofq.quantization.oscillation import THRESHOLD, CodeHistory
from ofq.training.precision import casting
from ofq.training.probes.probe import Probe, Rows, spread, to_host

POSITIONS = 256
"""Most positions that are followed of each quantized activation."""

_OUTER = ("first input", "last input")


class ActivationFlips(Probe):
    """Flips and oscillation frequencies of activations' codes, as a tracker has them of weights.

    The same images go through the model before a window and after each step of it, in eval mode and
    without gradient. A fixed sample of the positions of each activation is followed, over all
    images. A code changes with the weights before it, and with its quantizer's scale and shift. The
    frequency goes on from window to window.

    Activations whose quantizer has no codes (:meth:`ofq.ActivationQuantizer.codes`) are left out.

    Args:
        model: The model, calibrated.
        activations: Its quantized activations.
        images: The images, (B, channels, H, W); kept in a checkpoint, so that a resumed training
            goes on with the same ones.
        precision: Precision of the model's products.

    Attributes:
        left_out: Kinds of the quantizers that have no codes.
    """

    table = "activations"
    images: Tensor
    steps: Tensor

    def __init__(
        self,
        model: nn.Module,
        activations: list[QuantizedActivation],
        images: Tensor,
        precision: Precision,
    ) -> None:
        super().__init__()
        # not as parts of this module, whose state they aren't
        self._forward, self._inner = partial(model), list(model.modules())
        self.precision = precision
        self.activations = activations
        self.entries: dict[str, Tensor] = {}
        self.register_buffer("images", images.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=images.device))
        codes = self._read()
        self.activations = [a for a in activations if a.name in codes]
        kinds = (type(a.quantizer).__name__ for a in activations if a.name not in codes)
        self.left_out = list(dict.fromkeys(kinds))
        # each position is a row, so that its flips are counted by themselves
        self.history = CodeHistory(self._joined(codes))

    def seen(self, slot: int) -> None:
        """Compare the codes with the previous ones; before a window, only store them."""
        codes = self._joined(self._read())
        if slot < 0:
            self.history.previous.copy_(codes)
        else:
            self.history.observe(codes)
            self.steps += 1

    def take(self, epoch: int, step: int) -> Rows:
        """Return a row per activation: flips per 1,000 positions and step, share of oscillating."""
        oscillating = (self.history.frequency > THRESHOLD).long().flatten()
        steps, oscillating, flips = to_host([self.steps, oscillating, self.history.flips])
        rows = []
        begin = 0
        for activation in self.activations:
            count = len(self.entries[activation.name])
            mine = slice(begin, begin + count)
            begin += count
            rows.append(
                {
                    "epoch": epoch,
                    "step": step,
                    "layer": activation.layer,
                    "role": activation.role,
                    "steps": int(steps),
                    "positions": count,
                    "oscillation_rate": 100 * int(oscillating[mine].sum()) / count,
                    "flips": 1000 * int(flips[mine].sum()) / count / max(1, int(steps)),
                }
            )
        self.history.reset_flips()
        self.steps.zero_()
        return rows

    def _joined(self, codes: dict[str, Tensor]) -> Tensor:
        found = [codes[a.name] for a in self.activations]
        return torch.cat(found or [self.images.new_empty(0, dtype=torch.int16)]).unsqueeze(1)

    @torch.no_grad()
    def _read(self) -> dict[str, Tensor]:
        """Return the codes of the followed positions, int16, by the activation's name."""
        codes: dict[str, Tensor] = {}
        for activation in self.activations:
            activation.quantizer.reader = partial(self._keep, codes, activation)
        try:
            with evaluating(self._inner), uncompiled(), casting(self.precision, self.images.device):
                self._forward(self.images)
        finally:
            for activation in self.activations:
                del activation.quantizer.reader
        return codes

    def _keep(self, codes: dict[str, Tensor], activation: QuantizedActivation, x: Tensor) -> None:
        # a product shows its operand without padding first, then as it is
        if activation.name in codes:
            return
        quantizer = activation.quantizer
        found = quantizer.codes(x)
        if found is None:
            return
        if found.shape != x.shape:
            raise UserError(
                f"{type(quantizer).__name__}.codes returns shape {tuple(found.shape)} for "
                f"{activation.name}; allowed: the activation's, {tuple(x.shape)}"
            )
        if activation.name not in self.entries:
            self.entries[activation.name] = sample(x.numel(), POSITIONS).to(x.device)
        # int8 doesn't hold unsigned codes of 8 bits
        codes[activation.name] = found.flatten()[self.entries[activation.name]].to(torch.int16)


def sample(total: int, count: int) -> Tensor:
    """Return up to ``count`` of the numbers below ``total``, int64, equal for every run.

    One is drawn of each of ``count`` equal spans, so that it takes no time to draw few of many, and
    no period of the activation's layout is met.
    """
    begins = spread(total, count)
    lengths = torch.cat([begins[1:], torch.tensor([total])]) - begins
    # a generator of its own, so that probes don't shift the random numbers of training
    share = torch.rand(len(begins), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return begins + (lengths * share).long()


@contextmanager
def evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Set all modules to eval mode, and each back to its own mode afterwards."""
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def measures(rows: Rows) -> dict[str, Any]:
    """Return the measures of an epoch's rows: of the blocks' activations together, and by role.

    The first and last layers are left out, as the tracker leaves out their weights.
    """
    inner = [row for row in rows if row["role"] not in _OUTER]
    if not inner:
        return {}
    rate = "oscillation_rate"
    roles = {role: [r for r in inner if r["role"] == role] for role in (r["role"] for r in inner)}
    return {
        f"activation_{rate}": _mean(inner, rate),
        "activation_flips": _mean(inner, "flips"),
        **{f"activation_{rate}/{role}": _mean(own, rate) for role, own in roles.items()},
    }


def _mean(rows: Rows, measure: str) -> float:
    total = sum(row["positions"] for row in rows)
    return float(sum(row[measure] * row["positions"] for row in rows) / total)
