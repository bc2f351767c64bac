"""Optimizer and learning-rate schedule of a stage, both from timm."""

from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from ofq.config import Training
from ofq.quantization import WeightQuantizer


def make_optimizer(model: nn.Module, training: Training, scale_lr: float = 1.0) -> Optimizer:
    """Create AdamW or SGD, without decay for one-dimensional parameters and embeddings.

    Args:
        model: The model.
        training: The stage's hyperparameters.
        scale_lr: Factor on the learning rate of learned weight scales.
    """
    options = {"momentum": 0.0, "nesterov": False} if training.optimizer == "sgd" else {}
    scales = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, WeightQuantizer)
        for parameter in module.parameters()
    }
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    groups = []
    for group in param_groups_weight_decay(
        model, training.weight_decay, no_weight_decay_list=exempt
    ):
        learned = [p for p in group["params"] if id(p) in scales]
        others = [p for p in group["params"] if id(p) not in scales]
        groups += [
            {**group, "params": others},
            {**group, "params": learned, "lr_scale": scale_lr},
        ]
    return create_optimizer_v2(
        [group for group in groups if group["params"]],
        opt=training.optimizer,
        lr=training.lr,
        fused=True,
        **options,
    )


def make_schedule(optimizer: Optimizer, training: Training) -> CosineLRScheduler:
    """Create the schedule by epochs: linear warm-up, cosine from ``lr`` to ``min_lr``, cooldown."""
    return CosineLRScheduler(
        optimizer,
        t_initial=training.epochs - training.cooldown_epochs,
        lr_min=training.min_lr,
        warmup_t=training.warmup_epochs,
        warmup_lr_init=training.warmup_lr,
    )
