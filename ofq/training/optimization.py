"""Optimizer and learning-rate schedule of a stage, both from timm."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from ofq.config import Training
from ofq.quantization import ActivationQuantizer, WeightQuantizer


class Together(Optimizer):
    """Several optimizers as one, each of its own parameters.

    Args:
        parts: The optimizers; only the first one follows the learning-rate schedule.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step each optimizer."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()  # loading has replaced them


def make_optimizer(model: nn.Module, training: Training, scale_lr: float = 1.0) -> Optimizer:
    """Create AdamW or SGD, without decay for one-dimensional parameters and embeddings.

    With ``scale_adam`` the learned scales of weights and activations have an Adam of their own.

    Args:
        model: The model.
        training: The stage's hyperparameters.
        scale_lr: Factor on the learning rate of learned weight scales.
    """
    own = _scales(model, (WeightQuantizer, ActivationQuantizer)) if training.scale_adam else []
    apart = {id(parameter) for parameter in own}
    scales = {id(parameter) for parameter in _scales(model, (WeightQuantizer,))}
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    groups = []
    for group in param_groups_weight_decay(
        model, training.weight_decay, no_weight_decay_list=exempt
    ):
        rest = [p for p in group["params"] if id(p) not in apart]
        learned = [p for p in rest if id(p) in scales]
        others = [p for p in rest if id(p) not in scales]
        groups += [
            {**group, "params": others},
            {**group, "params": learned, "lr_scale": scale_lr},
        ]
    options = {"momentum": training.momentum, "nesterov": False}
    optimizer = create_optimizer_v2(
        [group for group in groups if group["params"]],
        opt=training.optimizer,
        lr=training.lr,
        fused=True,
        **(options if training.optimizer == "sgd" else {}),
    )
    if not own:
        return optimizer
    assert training.scale_adam is not None
    return Together(optimizer, torch.optim.Adam(own, lr=training.scale_adam, fused=True))


def _scales(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[Tensor]:
    """Return the parameters that train, of all quantizers of some kinds, each once."""
    parameters = (
        parameter
        for module in model.modules()
        if isinstance(module, kinds)
        for parameter in module.parameters()
        if parameter.requires_grad
    )
    return list({id(parameter): parameter for parameter in parameters}.values())


def make_schedule(optimizer: Optimizer, training: Training) -> CosineLRScheduler:
    """Create the schedule by epochs: linear warm-up, cosine from ``lr`` to ``min_lr``, cooldown."""
    return CosineLRScheduler(
        optimizer.parts[0] if isinstance(optimizer, Together) else optimizer,
        t_initial=training.epochs - training.cooldown_epochs,
        lr_min=training.min_lr,
        warmup_t=training.warmup_epochs,
        warmup_lr_init=training.warmup_lr,
    )
