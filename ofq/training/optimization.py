"""Optimizer and learning-rate schedule of a stage, both timm's."""

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from ofq.study import Training


def make_optimizer(model: nn.Module, training: Training) -> Optimizer:
    """AdamW or SGD; no decay for one-dimensional parameters and embeddings."""
    options = {"momentum": 0.0, "nesterov": False} if training.optimizer == "sgd" else {}
    return create_optimizer_v2(
        model,
        opt=training.optimizer,
        lr=training.lr,
        weight_decay=training.weight_decay,
        **options,
    )


def make_schedule(optimizer: Optimizer, training: Training) -> CosineLRScheduler:
    """Linear warm-up, then a cosine from ``lr`` to ``min_lr``, epoch by epoch."""
    return CosineLRScheduler(
        optimizer,
        t_initial=training.epochs,
        lr_min=training.min_lr,
        warmup_t=training.warmup_epochs,
        warmup_lr_init=training.warmup_lr,
    )
