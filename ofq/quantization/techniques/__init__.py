"""Techniques against oscillation, which act around each optimizer step."""

from ofq.quantization.techniques.base import (
    Technique,
    make_technique,
    register_technique,
)
from ofq.quantization.techniques.cga import (
    ConfidenceGuidedAnnealing,
    FreezeAll,
    NoFreeze,
    RatioAnnealing,
)
from ofq.quantization.techniques.clip_penalty import ClipPenalty
from ofq.quantization.techniques.dampening import Dampening
from ofq.quantization.techniques.freezing import IterativeFreezing
from ofq.quantization.techniques.reestimation import BatchNormReestimation

__all__ = [
    "BatchNormReestimation",
    "ClipPenalty",
    "ConfidenceGuidedAnnealing",
    "Dampening",
    "FreezeAll",
    "IterativeFreezing",
    "NoFreeze",
    "RatioAnnealing",
    "Technique",
    "make_technique",
    "register_technique",
]
