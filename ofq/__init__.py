"""Oscillation-free quantization for low-bit vision transformers.

The public names are loaded on first use, so that ``import ofq`` costs nothing where torch isn't
needed (parsing a workflow, ``ofq --help``, reports).

Example:
    >>> import torch, ofq.quantization, timm
    >>> model = timm.create_model("deit_tiny_patch16_224", depth=1)
    >>> images = torch.rand(2, 3, 224, 224)
    >>> model = ofq.quantize(model, weight_bits=2, weight_quantizer="statsq", qkr=True)
    >>> ofq.calibrate(model, images)
    >>> tracker = ofq.OscillationTracker(model)
    >>> annealing = ofq.ConfidenceGuidedAnnealing(model, boundary_range=0.005)  # after QAT
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> model(images).sum().backward()
    >>> annealing.step(optimizer)
    >>> tracker.update()
    >>> [part.role for part in tracker.summary()]
    ['qk', 'v', 'proj', 'fc1', 'fc2']
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "LSQ",
    "ConfidenceGuidedAnnealing",
    "NoiseInjection",
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
