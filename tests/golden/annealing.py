"""Kind f, and the trajectories of kind h: masks, and optimizer steps under annealing."""

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import ofq
from golden import models
from golden.case import EXACT, FORWARD, Case, grouped
from golden.parity import by_released_name, check_initial_scales, forget_scales, load
from ofq.quantization import StatsQ
from ofq.quantization.annealing import AsPaper
from ofq.quantization.layers import ActivationQuantizer, QuantizedLinear
from ofq.quantization.lsq import LSQ
from ofq.quantization.released import AsReleased, released_names
from ofq.study import Training
from ofq.training.objective import distillation_loss
from ofq.training.optimization import make_optimizer


def masks(case: Case) -> None:
    """The frozen entries of a matrix, exact; as in the paper, thresholds of absent codes count too."""
    for group in case.groups(r"b\d+"):
        quantizer = StatsQ(int(group[1:]))
        position = quantizer.position(case[f"{group}.weight"])
        for name in [n for n in case.left if re.match(rf"{group}\.br.*\.mask$", n)]:
            boundary_range = float(re.search(r"br([\d.e-]+)\.mask$", name)[1])
            released = AsReleased(nn.Module()).trainable(position, boundary_range, quantizer)
            case.compare(name, ~released, EXACT)
            ours = AsPaper().trainable(position, boundary_range, quantizer)
            codes = position.round()
            absent = (position < codes.min() ) | (position > codes.max())
            assert torch.equal(ours | absent, released | absent)
            assert not (released & ~ours).any()


def trajectory(case: Case) -> None:
    """Loss, masks, gradients and parameters of each step, from the state before the first."""
    toy = isinstance(case.settings["model"], str)
    state = case.under("state0")
    if toy:
        model: nn.Module = _Toy(case, state)
    else:
        model = models.quantized(case, models.full_precision(case, state), qkr=True)
    load(model, _toy_names(state) if toy else state)
    _ = forget_scales, check_initial_scales
    annealing = ofq.ConfidenceGuidedAnnealing(
        model, case.settings["boundaryRange"], AsReleased(model)
    )
    training = Training(
        epochs=1,
        batch_size=case["step1.x"].shape[0],
        lr=case.settings["lr"],
        weight_decay=case.settings["weight_decay"],
    )
    optimizer = make_optimizer(model, training)
