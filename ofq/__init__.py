"""Oscillation-free quantization for low-bit vision transformers.

The public names are loaded on first use, so that ``import ofq`` costs nothing where torch isn't
needed (parsing a workflow, ``ofq --help``, reports).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "LSQ",
    "ConfidenceGuidedAnnealing",
    "OscillationTracker",
    "StatsQ",
    "WeightQuantizer",
    "calibrate",
    "quantize",
    "register_weight_quantizer",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("ofq.quantization"), name)
    raise AttributeError(f"module 'ofq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
