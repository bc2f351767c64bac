"""StatsQ, LSQ, QKR, CGA and the oscillation tracker on timm's models, without training."""

from ofq import torchvision_shim

torchvision_shim.install()  # before anything imports timm

from ofq.quantization.annealing import ConfidenceGuidedAnnealing, near_threshold  # noqa: E402
from ofq.quantization.annealing_variants import FreezeAll, RatioAnnealing  # noqa: E402
from ofq.quantization.convert import calibrate, quantize, set_gradient_batch  # noqa: E402
from ofq.quantization.dampening import Dampening  # noqa: E402
from ofq.quantization.freezing import IterativeFreezing  # noqa: E402
from ofq.quantization.layers import low_bit_weights  # noqa: E402
from ofq.quantization.lsq import LSQ, LSQWeight  # noqa: E402
from ofq.quantization.noise import NoiseInjection  # noqa: E402
from ofq.quantization.oscillation import (  # noqa: E402
    CodeHistory,
    Oscillation,
    OscillationTracker,
    combine,
)
from ofq.quantization.quantizer import (  # noqa: E402
    WeightQuantizer,
    register_weight_quantizer,
    straight_through,
    weight_quantizer_names,
)
from ofq.quantization.statsq import StatsQ  # noqa: E402
from ofq.quantization.variants import (  # noqa: E402
    LearnedStatsQ,
    StatisticalLSQ,
    StatsQMoments,
)

__all__ = [
    "LSQ",
    "CodeHistory",
    "ConfidenceGuidedAnnealing",
    "Dampening",
    "FreezeAll",
    "IterativeFreezing",
    "LSQWeight",
    "LearnedStatsQ",
    "NoiseInjection",
    "Oscillation",
    "OscillationTracker",
    "RatioAnnealing",
    "StatisticalLSQ",
    "StatsQ",
    "StatsQMoments",
    "WeightQuantizer",
    "calibrate",
    "combine",
    "low_bit_weights",
    "near_threshold",
    "quantize",
    "register_weight_quantizer",
    "set_gradient_batch",
    "straight_through",
    "weight_quantizer_names",
]
