"""All probes of a training, and the steps at which they read the model."""

import torch
from torch import Tensor, nn

from ofq.config import ProbeConfig
from ofq.config.stage import Precision
from ofq.quantization import low_bit_weights
from ofq.quantization.layers import quantized_activations
from ofq.training.probes.activations import ActivationFlips
from ofq.training.probes.histograms import Histograms
from ofq.training.probes.joint import JointFlips
from ofq.training.probes.paths import WeightPaths
from ofq.training.probes.probe import Probe, Rows, Table
from ofq.training.probes.signs import SignChanges

STEPS = 2048
"""Most steps of a stage that are probed: all of a short one, else each epoch's last ones."""


class Probes(nn.Module):
    """All probes of a stage.

    At most :data:`STEPS` steps are probed, in windows of at least two consecutive steps at the end
    of each epoch, so that neither rows nor time grow with the length of the training. The current
    epoch's values are in buffers, so checkpoints contain them. A model without low-bit weights has
    no probes.

    Args:
        model: The model.
        settings: Config of the probes.
        epochs: Number of the stage's epochs.
        steps_per_epoch: Number of optimizer steps per epoch.
        images: Training images whose activations are followed, on the model's device; None to
            follow none.
        precision: Precision of the model's products.

    Attributes:
        left_out: Kinds of activation quantizers whose flips can't be recorded, for lack of codes.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: ProbeConfig,
        epochs: int,
        steps_per_epoch: int,
        *,
        images: Tensor | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.window = min(steps_per_epoch, max(2, STEPS // epochs))
        self.weights = list(low_bit_weights(model))
        parts: list[Probe] = []
        if self.weights and settings.weights:
            parts.append(WeightPaths(self.weights, settings.weights, self.window))
        if self.weights and settings.sample:
            parts.append(SignChanges(self.weights, settings.sample))
            parts.append(JointFlips(self.weights, settings.sample))
        activations = list(quantized_activations(model))
        self.left_out: list[str] = []
        if activations and images is not None:
            flips = ActivationFlips(model, activations, images, precision)
            self.left_out = flips.left_out
            if flips.activations:
                parts.append(flips)
        self.parts = nn.ModuleList(parts)
        moments = settings.histograms if self.weights else 0
        self.histograms = Histograms(self.weights, moments, epochs)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Probe the gradients of a step, counted from 1, before the optimizer's step."""
        if self._slot(step) < 0 or not self.parts:
            return
        if step == 1 or self._slot(step - 1) < 0:
            self._see(-1)
        for part in self._parts():
            part.before_step()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Probe the weights after the optimizer's step."""
        slot = self._slot(step)
        if slot >= 0 and self.parts:
            self._see(slot)

    def take(self, epoch: int, step: int) -> dict[Table, Rows]:
        """Return the rows of an ended epoch by table; epoch 0 comes before the first step.

        Waits for the device.
        """
        rows: dict[Table, Rows] = {
            part.table: part.take(epoch, step) for part in self._parts() if epoch
        }
        return rows | {self.histograms.table: self.histograms.take(epoch, step)}

    def _slot(self, step: int) -> int:
        """Return a step's number within its epoch's window; negative before the window."""
        return (step - 1) % self.steps_per_epoch - (self.steps_per_epoch - self.window)

    def _see(self, slot: int) -> None:
        for index, weight in enumerate(self.weights):
            latent = weight.latent()
            position = weight.quantizer.position(latent)
            for part in self._parts():
                part.see(index, latent, position, slot)
        for part in self._parts():
            part.seen(slot)

    def _parts(self) -> list[Probe]:
        return [part for part in self.parts if isinstance(part, Probe)]
