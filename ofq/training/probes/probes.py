"""All recordings of a training together, and the steps at which they are made."""

import torch
from torch import nn

from ofq.config import ProbeConfig
from ofq.quantization import low_bit_weights
from ofq.training.probes.histograms import Histograms
from ofq.training.probes.joint import JointFlips
from ofq.training.probes.part import Part, Rows, Table
from ofq.training.probes.paths import WeightPaths
from ofq.training.probes.signs import SignChanges

STEPS = 2048
"""The most steps of a stage that are recorded: all of a short one, else each epoch's last ones."""


class Probes(nn.Module):
    """What a stage records beside its metrics.

    At most :data:`STEPS` steps are recorded, in windows of consecutive ones at the end of each
    epoch (two at least), so that neither rows nor time grow with the training. What was recorded
    since the epoch began is in buffers: a checkpoint keeps it with ``state_dict()``. A model
    without low-bit weights has nothing to record.

    Args:
        model: The model.
        settings: What to record.
        epochs: The stage's epochs.
        steps_per_epoch: Optimizer steps of each.
    """

    def __init__(
        self, model: nn.Module, settings: ProbeConfig, epochs: int, steps_per_epoch: int
    ) -> None:
        super().__init__()
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.window = min(steps_per_epoch, max(2, STEPS // epochs))
        self.weights = list(low_bit_weights(model))
        parts: list[Part] = []
        if self.weights and settings.weights:
            parts.append(WeightPaths(self.weights, settings.weights, self.window))
        if self.weights and settings.sample:
            parts.append(SignChanges(self.weights, settings.sample))
            parts.append(JointFlips(self.weights, settings.sample))
        self.parts = nn.ModuleList(parts)
        moments = settings.histograms if self.weights else 0
        self.histograms = Histograms(self.weights, moments, epochs)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """The gradients of a step are there; steps count from 1."""
        if self._slot(step) < 0 or not self.parts:
            return
        if step == 1 or self._slot(step - 1) < 0:
            self._see(-1)
        for part in self._parts():
            part.before_step()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The optimizer has made a step."""
        slot = self._slot(step)
        if slot >= 0 and self.parts:
            self._see(slot)

    def take(self, epoch: int, step: int) -> dict[Table, Rows]:
        """What an epoch that has ended leaves in each table; epoch 0 comes before the first step.

        Waits for the device.
        """
        found: dict[Table, Rows] = {
            part.table: part.take(epoch, step) for part in self._parts() if epoch
        }
        return found | {self.histograms.table: self.histograms.take(epoch, step)}

    def _slot(self, step: int) -> int:
        """A step's number within its epoch's window; negative before that."""
        return (step - 1) % self.steps_per_epoch - (self.steps_per_epoch - self.window)

    def _see(self, slot: int) -> None:
        for index, weight in enumerate(self.weights):
            latent = weight.latent()
            position = weight.quantizer.position(latent)
            for part in self._parts():
                part.see(index, latent, position, slot)
        for part in self._parts():
            part.seen(slot)

    def _parts(self) -> list[Part]:
        return [part for part in self.parts if isinstance(part, Part)]
