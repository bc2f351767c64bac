"""Which check a case gets, decided by what its description says of itself."""

import re
from collections.abc import Callable

from tests.golden import annealing, attention, layers, layouts, losses, models, quantizers, tracking
from tests.golden.case import Case

Check = Callable[[Case], None]

# the released class or function that computed the case → the check
_BY_SOURCE: dict[str, Check] = {
    r"StatsQuantizer": quantizers.statsq,
    r"Lsq\w+": quantizers.lsq,
    r"LSQ_input": quantizers.shifted_lsq,
    r"QLinear|LSQ_QLinear4head|LSQ_w_and_act_QLinear|LSQ_QConv2d": layers.layer,
    r"QMLP(_swin)?": layers.mlp,
    r"QAttention\w*": attention.attention,
    r"freeze_outside_boundary_weight_idx": annealing.masks,
    r"train_one_epoch": annealing.trajectory,
    r"TrackOscillation": tracking.tracker,
    r"replace_module_by_qmodule_\w+": models.model,
    r"KDLossSoftandHard": losses.distillation,
}


def check_of(case: Case) -> Check | None:
    """The check of a case's kind; None if the kind is unknown."""
    if "quantized_state_dict" in case.description:
        return layouts.layout
    matches = (check for name, check in _BY_SOURCE.items() if re.fullmatch(name, case.class_name))
    return next(matches, None)
