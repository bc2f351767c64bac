"""Moving average of the weights (Gupta and Asthana 2023, arXiv 2311.05109), evaluated quantized."""

import copy

import torch
from torch import Tensor, nn

from ofq.quantization.layers import quantized_model
from ofq.quantization.techniques.base import Technique, check_number, register_technique


@register_technique("weight_average")
class WeightAverage(Technique):
    """Exponential moving average of all parameters, which is evaluated and saved as the result.

    After each step, average ← d·average + (1 − d)·parameter for latent weights, scales, shifts and
    all else that is learned, from the parameters before the first step on; weights are quantized
    from their averages. The trained model is left alone. Of QKR's merged weight W_q and W_k are
    averaged, not their product.

    Args:
        model: A quantized model, calibrated.
        decay: d, above 0, below 1. The start counts d^steps in the result.

    Attributes:
        average: The model with the averages.

    Raises:
        UserError: The model isn't quantized, or the decay isn't allowed.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = check_number("decay", decay, below=1)
        model = quantized_model(model, "nothing to average: ")
        self.average = copy.deepcopy(model).requires_grad_(False)
        self._trained: list[Tensor] = [*model.parameters()]
        self._averages: list[Tensor] = [*self.average.parameters()]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Add the weights after the step to their average."""
        torch._foreach_lerp_(self._averages, self._trained, 1 - self.decay)

    @torch.no_grad()
    def evaluated(self, model: nn.Module) -> nn.Module:
        """Return the average of the model, with the model's buffers as they are now."""
        own = dict(self.average.named_buffers())
        for name, buffer in quantized_model(model).named_buffers():
            own[name].copy_(buffer)
        return self.average
