"""Oscillation-free quantization for low-bit vision transformers.

Public names are imported on first use, so that ``import ofq`` doesn't import torch where it isn't
needed (parsing a workflow, ``ofq --help``, reports). It lets timm be imported beside a CPU build of
torch. The quantizers and techniques that have no name here are in :mod:`ofq.quantization`.

Example:
    >>> import ofq, timm, torch
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
from typing import TYPE_CHECKING, Any

from ofq.torchvision_shim import install_when_needed

if TYPE_CHECKING:
    from ofq.export.onnx import export_onnx as export_onnx
    from ofq.export.packed import load_packed as load_packed
    from ofq.export.packed import save_packed as save_packed
    from ofq.models.compiling import compile as compile
    from ofq.quantization import LSQ as LSQ
    from ofq.quantization import ActivationQuantizer as ActivationQuantizer
    from ofq.quantization import ConfidenceGuidedAnnealing as ConfidenceGuidedAnnealing
    from ofq.quantization import NoiseInjection as NoiseInjection
    from ofq.quantization import OscillationTracker as OscillationTracker
    from ofq.quantization import StatsQ as StatsQ
    from ofq.quantization import Technique as Technique
    from ofq.quantization import WeightQuantizer as WeightQuantizer
    from ofq.quantization import calibrate as calibrate
    from ofq.quantization import low_bit_weights as low_bit_weights
    from ofq.quantization import quantize as quantize
    from ofq.quantization import register_activation_quantizer as register_activation_quantizer
    from ofq.quantization import register_technique as register_technique
    from ofq.quantization import register_weight_quantizer as register_weight_quantizer
    from ofq.report.figures.registry import Drawn as Drawn
    from ofq.report.figures.registry import register_figure as register_figure
    from ofq.training.data.source import Data as Data
    from ofq.training.data.source import DataRequest as DataRequest
    from ofq.training.data.source import register_dataset as register_dataset

__version__ = "0.1.0"

_PLACES = {
    "ofq.export.onnx": ("export_onnx",),
    "ofq.export.packed": ("load_packed", "save_packed"),
    "ofq.models.compiling": ("compile",),
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
_SUITE = ("ofq.training", "ofq.report")  # their packages come with the extra `suite`

__all__ = sorted(_HOME)

install_when_needed()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ofq' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if not _HOME[name].startswith(_SUITE) or str(error.name).startswith("ofq"):
            raise
        raise ImportError(
            f"ofq.{name} needs the package '{error.name}': pip install \"ofq[suite]\""
        ) from None


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
