"""Re-estimation of batch norm's statistics (Nagel et al. 2022, arXiv 2203.11086, section 4.1)."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from ofq.errors import UserError
from ofq.quantization.layers import quantized_model
from ofq.quantization.techniques.base import Technique, register_technique

BatchNorm = nn.modules.batchnorm._BatchNorm


@register_technique("bn_reestimation")
class BatchNormReestimation(Technique):
    """Batch norm's statistics from some training batches with the present weights, in evaluation.

    In training, weights that oscillate change the distribution of a layer's outputs from step to
    step, so the running averages belong to no weights that the model ever had. Before each
    evaluation mean and variance are replaced by the means over the batches of each batch's own, as
    in the released code (``reestimate_BN_stats``), all other parts in eval mode. Training itself
    doesn't use them, so its weights are the same with and without this technique.

    Args:
        model: A quantized model.
        batches: Number of batches, 1 or more; fewer if an epoch has fewer.

    Raises:
        UserError: The number isn't allowed, or the model has no batch norm with statistics.
    """

    def __init__(self, model: nn.Module, batches: int = 50) -> None:
        super().__init__()
        if batches < 1:
            raise UserError(f"bn_reestimation: batches {batches}; allowed: 1 or more")
        self.batches = batches
        model = quantized_model(model, "nothing to re-estimate: ")
        self._model = (model,)  # in a tuple, since a technique doesn't own the model
        self._norms = tuple(
            module
            for module in model.modules()
            if isinstance(module, BatchNorm) and module.track_running_stats
        )
        if not self._norms:
            raise UserError(
                f"nothing to re-estimate: the {type(model).__name__} has no batch norm; leave "
                "bn_reestimation out"
            )

    @torch.no_grad()
    def before_evaluation(self, batches: Iterable[Tensor]) -> None:
        """Replace the statistics by those of the first batches."""
        (model,) = self._model
        was_training, momenta = model.training, [norm.momentum for norm in self._norms]
        model.eval()
        for norm in self._norms:
            norm.training = True  # of this module alone
            norm.momentum = None  # torch then keeps the mean over all batches since the reset
            norm.reset_running_stats()
        try:
            for batch in islice(batches, self.batches):
                model(batch)
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum
            model.train(was_training)
