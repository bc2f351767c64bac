"""Factors in which two methods can differ, for contrasts that claim to test one of them alone.

The workflow reads config files without torch, so the built-in weight quantizers' properties stand
here in a table; a test measures on each quantizer that they are so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ofq.config.fields import QuantizedStage
from ofq.config.method import Method
from ofq.values import OFF, parse_bits

Factor = Literal[
    "grid",
    "initial_step",
    "scale",
    "gradient",
    "scale_lr",
    "activation_quantizer",
    "activation_options",
    "qkr",
    "first_last",
    "layers",
    "techniques",
    "cga",
    "noise",
    "training",
]
"""Factors: four of the weight quantizer, then keys of a method.

``grid`` is whether there is a level at zero or a threshold; ``initial_step`` the distance of levels
when QAT begins; ``scale`` whether it is learned (and by which gradient factor) or a statistic of
the weights; ``gradient`` whether the weight's is the identity everywhere or only inside the range
of the levels.
"""

OF_QUANTIZER: tuple[Factor, ...] = ("grid", "initial_step", "scale", "gradient")
"""Factors that the weight quantizer and its options decide."""


@dataclass(frozen=True)
class _Traits:
    """Properties of a weight quantizer.

    Attributes:
        grid: What lies at zero.
        scale: How the scale comes about.
        gradient: Weights that pass a gradient, by default.
        step: Maps bits to the initial step, in units of ``factor`` times ``statistic``.
        factor: Default of the option ``factor``.
        statistic: Statistic of a row of weights from which the initial step is made.
    """

    grid: Literal["a level at zero", "a threshold at zero"]
    scale: Literal["learned", "statistical"]
    gradient: Literal["everywhere", "inside"]
    step: Callable[[int], float]
    factor: float = 2
    statistic: str = "mean|w|"


def _lsq_step(bits: int) -> float:
    return 1 / math.sqrt(2 ** (bits - 1) - 1)


def _statsq_step(bits: int) -> float:
    return 1 / 2 ** (bits - 1)


def _one(bits: int) -> float:
    return 1.0


TRAITS = {
    "lsq": _Traits("a level at zero", "learned", "inside", _lsq_step),
    "lsq_statistical": _Traits("a level at zero", "statistical", "inside", _lsq_step),
    "statsq": _Traits("a threshold at zero", "statistical", "everywhere", _statsq_step),
    "statsq_learned": _Traits("a threshold at zero", "learned", "inside", _statsq_step),
    "statsq_moments": _Traits(
        "a threshold at zero", "statistical", "everywhere", _one, factor=1, statistic="std(w)"
    ),
}
"""Properties of StatsQ, LSQ and the controls that combine them."""


def factors(method: Method, bits: str) -> dict[str, Any]:
    """Return a method's value of each :data:`Factor`.

    A weight quantizer that isn't in :data:`TRAITS`, such as a user's own, differs from all others
    in each of its four factors.

    Args:
        method: The method.
        bits: Bits of weights and activations, such as ``W2A2``.
    """
    own = {"label", "weight_quantizer", "options", "module", "training", "tuned"}
    shared = {name: getattr(method, name) for name in Method.model_fields if name not in own}
    # a stage more is longer training, too
    stages: list[QuantizedStage] = ["qat"] if method.cga is None else ["qat", "cga"]
    training = {stage: method.training.get(stage, {}) for stage in stages}
    return {**_of_quantizer(method, parse_bits(bits)[0]), **shared, "training": training}


def _of_quantizer(method: Method, bits: int) -> dict[str, str]:
    if bits == OFF:
        return dict.fromkeys(OF_QUANTIZER, "none")
    traits = TRAITS.get(method.weight_quantizer)
    if traits is None:
        options = ", ".join(f"{key} {value}" for key, value in sorted(method.options.items()))
        unknown = " with ".join(filter(None, (f"that of {method.weight_quantizer}", options)))
        return dict.fromkeys(OF_QUANTIZER, unknown)
    factor = method.options.get("factor", traits.factor)
    if isinstance(factor, str):  # refused when the quantizer is made
        step = f"factor {factor}"
    else:
        # four digits, since a factor in a file that matches two grids may be a rounded root
        step = f"{factor * traits.step(bits):.4g} {traits.statistic}"
    gradient = str(method.options.get("gradient", traits.gradient))
    own = method.options.get("gradient_factor", "count")
    scale = traits.scale if own == "count" else f"{traits.scale}, gradient factor {own}"
    return {"grid": traits.grid, "initial_step": step, "scale": scale, "gradient": gradient}


def differences(method: Method, against: Method, bits: str) -> dict[str, str]:
    """Compare two methods at given bits.

    Returns:
        The factors in which they differ, in the order of :data:`Factor`; those of the weight
        quantizer with both values, for messages.
    """
    first, second = factors(method, bits), factors(against, bits)
    return {
        name: f"{name} ({first[name]}; {second[name]})" if name in OF_QUANTIZER else name
        for name in first
        if first[name] != second[name]
    }
