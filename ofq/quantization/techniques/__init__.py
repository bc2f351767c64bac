"""Techniques against oscillation, which act around each optimizer step."""

from ofq.quantization.techniques.base import (
    Technique,
    make_technique,
    register_technique,
)
from ofq.quantization.techniques.bin_regularization import BinRegularization
from ofq.quantization.techniques.cga import (
    ConfidenceGuidedAnnealing,
    FreezeAll,
    NoFreeze,
    RatioAnnealing,
)
from ofq.quantization.techniques.clip_penalty import ClipPenalty
from ofq.quantization.techniques.dampening import Dampening
from ofq.quantization.techniques.freezing import IterativeFreezing
from ofq.quantization.techniques.oscillation_inducing import OscillationInducing
from ofq.quantization.techniques.reestimation import BatchNormReestimation
from ofq.quantization.techniques.transition_rate import TransitionRate
from ofq.quantization.techniques.weight_average import WeightAverage

__all__ = [
    "BatchNormReestimation",
    "BinRegularization",
    "ClipPenalty",
    "ConfidenceGuidedAnnealing",
    "Dampening",
    "FreezeAll",
    "IterativeFreezing",
    "NoFreeze",
    "OscillationInducing",
    "RatioAnnealing",
    "Technique",
    "TransitionRate",
    "WeightAverage",
    "make_technique",
    "register_technique",
]
