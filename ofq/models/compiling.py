"""Compiled training: ``torch.compile`` of a model's blocks, which take most of a step's time."""

import os
import shutil
import struct
import sys
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn
from torch._functorch import config as functorch

from ofq.errors import UserError
from ofq.quantization.convert import check_calibrated
from ofq.quantization.layers import QuantizedConv2d, wrapper_of
from ofq.quantization.oscillation import OscillationTracker
from ofq.quantization.techniques import Technique

_COMPILERS = ("g++", "clang++")
_KEPT = 0.7  # share of activations kept for backward; a CPU recomputes the rest at little cost
_LINKING = 10.0  # seconds without a change after which no linker still writes a file


def compile(model: nn.Module, *parts: OscillationTracker | Technique) -> nn.Module:
    """Compile a model's blocks for training, and its tracker and techniques, as the trainer does.

    All are changed in place, and keep their names and weights; they compile when first called,
    which takes a minute or so. Each size of batch has its own code, so evaluate at the training's,
    or inside ``torch.compiler.set_stance("force_eager")``. On a CPU this sets torch's
    ``activation_memory_budget``, and on any device its ``recompile_limit``, of the whole process.

    Args:
        model: A timm ViT, DeiT or Swin, in full precision, or quantized and calibrated; before or
            after it is wrapped for data-parallel training.
        parts: Its oscillation tracker and techniques, such as CGA.

    Returns:
        The model that was given.

    Raises:
        UserError: The model has no blocks, isn't calibrated or is inside ``torch.compile``; a part
            can't be compiled; or, on a CPU, there is no C++ compiler.

    Example:
        >>> import ofq, timm, torch
        >>> model = ofq.quantize(timm.create_model("deit_tiny_patch16_224", depth=1))
        >>> ofq.calibrate(model, torch.rand(2, 3, 224, 224))
        >>> tracker = ofq.OscillationTracker(model)
        >>> ofq.compile(model, tracker) is model
        True
    """
    if any(wrapper_of(module) == "torch.compile" for module in (model, *model.children())):
        raise UserError("the model is inside torch.compile; give the model itself to ofq.compile")
    if not any(isinstance(module, Block | SwinTransformerBlock) for module in model.modules()):
        raise UserError(
            f"a {type(model).__name__} has no blocks to compile; allowed: timm's VisionTransformer "
            "(ViT, DeiT) and SwinTransformer"
        )
    check_calibrated(model)
    for part in parts:
        if not isinstance(part, OscillationTracker | Technique):
            raise UserError(
                f"can't compile a {type(part).__name__} beside the model; allowed: its "
                "OscillationTracker and techniques"
            )
    compile_blocks(model, next(model.parameters()).device)
    for part in parts:
        part.compile()
    return model


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile each block of a model, and the quantized patch embedding, when first called.

    Blocks of equal shapes share their code. Other modules are not compiled: they gain less than
    their compilation costs.

    Args:
        model: A transformer of timm's, quantized and calibrated, or in full precision.
        device: The device that it trains on.

    Raises:
        UserError: There is no C++ compiler, which the CPU's code needs.
    """
    compiler = os.environ.get("CXX")
    if device.type == "cpu" and not any(map(shutil.which, [compiler] if compiler else _COMPILERS)):
        raise UserError(
            f"compiling for a CPU needs a C++ compiler, and there is none ({compiler or 'g++'}); "
            "install one, name it in CXX, or don't compile (of a run: resources.compile: false)"
        )
    if device.type == "cpu":
        functorch.activation_memory_budget = _KEPT
    _remove_torn_libraries()
    parts = (Block, SwinTransformerBlock, QuantizedConv2d)
    blocks = [module for module in model.modules() if isinstance(module, parts)]
    # one code for each shape: a Swin's stages have more shapes than torch's limit
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, len(blocks))
    for block in blocks:
        block.compile(dynamic=False)


def uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled parts run as plain PyTorch.

    For evaluation, which would compile code for each batch size, and for hooks.
    """
    return torch.compiler.set_stance("force_eager")


def _remove_torn_libraries() -> None:
    """Remove libraries that killed processes left incomplete in torch's cache.

    Torch would load them, which can crash a process.
    """
    if sys.platform != "linux":
        return
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    settled = time.time() - _LINKING
    for library in Path(cache_dir()).rglob("*.so"):
        with suppress(FileNotFoundError):  # another process has removed it
            if library.stat().st_mtime < settled and not _is_whole(library):
                library.unlink()


def _is_whole(library: Path) -> bool:
    """Return whether an ELF file reaches the end of its section table, which comes last."""
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (begin,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return begin > 0 and begin + size * count <= library.stat().st_size
