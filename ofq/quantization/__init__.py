"""StatsQ, LSQ, QKR, CGA and the oscillation tracker for timm's models, for any training loop."""

from ofq.quantization.activations import (
    ActivationQuantizer,
    register_activation_quantizer,
)
from ofq.quantization.convert import calibrate, quantize, set_gradient_batch
from ofq.quantization.layers import low_bit_weights
from ofq.quantization.noise import NoiseInjection
from ofq.quantization.oscillation import (
    CodeHistory,
    Oscillation,
    OscillationTracker,
    combine,
)
from ofq.quantization.quantizers.base import (
    WeightQuantizer,
    near_threshold,
    register_weight_quantizer,
    straight_through,
)
from ofq.quantization.quantizers.dorefa import DoReFa
from ofq.quantization.quantizers.ewgs import EWGS, EWGSActivation
from ofq.quantization.quantizers.lsq import LSQ, LSQWeight
from ofq.quantization.quantizers.lsqplus import LSQPlus, LSQPlusWeight
from ofq.quantization.quantizers.pact import PACT
from ofq.quantization.quantizers.statsq import StatsQ
from ofq.quantization.quantizers.variants import (
    LearnedStatsQ,
    StatisticalLSQ,
    StatsQMoments,
)
from ofq.quantization.techniques import (
    BatchNormReestimation,
    BinRegularization,
    ClipPenalty,
    ConfidenceGuidedAnnealing,
    Dampening,
    FreezeAll,
    IterativeFreezing,
    NoFreeze,
    OscillationInducing,
    RatioAnnealing,
    Technique,
    TransitionRate,
    WeightAverage,
    make_technique,
    register_technique,
)

__all__ = [
    "EWGS",
    "LSQ",
    "PACT",
    "ActivationQuantizer",
    "BatchNormReestimation",
    "BinRegularization",
    "ClipPenalty",
    "CodeHistory",
    "ConfidenceGuidedAnnealing",
    "Dampening",
    "DoReFa",
    "EWGSActivation",
    "FreezeAll",
    "IterativeFreezing",
    "LSQPlus",
    "LSQPlusWeight",
    "LSQWeight",
    "LearnedStatsQ",
    "NoFreeze",
    "NoiseInjection",
    "Oscillation",
    "OscillationInducing",
    "OscillationTracker",
    "RatioAnnealing",
    "StatisticalLSQ",
    "StatsQ",
    "StatsQMoments",
    "Technique",
    "TransitionRate",
    "WeightAverage",
    "WeightQuantizer",
    "calibrate",
    "combine",
    "low_bit_weights",
    "make_technique",
    "near_threshold",
    "quantize",
    "register_activation_quantizer",
    "register_technique",
    "register_weight_quantizer",
    "set_gradient_batch",
    "straight_through",
]
