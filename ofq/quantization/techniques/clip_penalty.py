"""PACT's penalty on its clipping values (Choi et al. 2018, arXiv 1805.06085)."""

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.quantizers.pact import PACT
from ofq.quantization.techniques.base import Technique, check_number, register_technique


@register_technique("clip_penalty")
class ClipPenalty(Technique):
    """L2 penalty on the clipping values of PACT: λ·Σ α².

    Args:
        model: A quantized model.
        strength: λ, above 0.

    Raises:
        UserError: The strength isn't allowed, or no activation of the model is quantized by PACT.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        super().__init__()
        self.strength = check_number("strength", strength)
        self._clips = [module.clip for module in model.modules() if isinstance(module, PACT)]
        if not self._clips:
            raise UserError("clip_penalty: no activation of the model is quantized by pact")

    def penalty(self, progress: float) -> Tensor:
        """Return the penalty, a scalar."""
        return self.strength * torch.stack([clip.square().sum() for clip in self._clips]).sum()
