"""Oscillation-free quantization for low-bit vision transformers.

Public names are imported on first use, so that ``import ofq`` doesn't import torch where it isn't
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

_PLACES = {
    "ofq.quantization": (
        "LSQ", "ActivationQuantizer", "ConfidenceGuidedAnnealing", "NoiseInjection",
        "OscillationTracker", "StatsQ", "Technique", "WeightQuantizer", "calibrate",
        "low_bit_weights", "quantize",
        "register_activation_quantizer", "register_technique", "register_weight_quantizer",
    ),
    "ofq.training.data.source": ("Data", "DataRequest", "register_dataset"),
    "ofq.report.figures.registry": ("Drawn", "register_figure"),
}  # fmt: skip
_HOME = {name: module for module, names in _PLACES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        if not _HOME[name].startswith("ofq.report"):
            import_module("ofq.quantization")  # before anything imports timm
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ofq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
