"""Compiled training: torch.compile for the blocks of a model, which is where a step's time goes."""

import os
import shutil
from contextlib import AbstractContextManager

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn
from torch._functorch import config as functorch

from ofq.errors import UserError
from ofq.quantization.layers import QuantizedConv2d

_COMPILERS = ("g++", "clang++")
_KEPT = 0.7  # of what backward would keep: on a CPU the rest is had again in almost no time


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile each block of a model, and the quantized patch embedding, when first called.

    Blocks of equal shapes share their code. What lies around them stays as it is: alone, it gains
    less than it costs to compile.

    Args:
        model: A transformer of timm's, quantized and calibrated, or in full precision.
        device: Where it trains.

    Raises:
        UserError: There is no C++ compiler, which the CPU's code needs.
    """
    wanted = os.environ.get("CXX")
    if device.type == "cpu" and not any(map(shutil.which, [wanted] if wanted else _COMPILERS)):
        raise UserError(
            f"resources.compile is true, but there is no C++ compiler ({wanted or 'g++'}); "
            "install one, name it in CXX, or set compile: false"
        )
    if device.type == "cpu":
        functorch.activation_memory_budget = _KEPT
    parts = (Block, SwinTransformerBlock, QuantizedConv2d)
    blocks = [module for module in model.modules() if isinstance(module, parts)]
    # one code for each shape: a Swin's stages have more of them than torch compiles unasked
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, len(blocks))
    for block in blocks:
        block.compile(dynamic=False)


def uncompiled() -> AbstractContextManager[object]:
    """Run compiled parts as plain PyTorch.

    For evaluation, which would need code of its own for each size of a batch, and for hooks.
    """
    return torch.compiler.set_stance("force_eager")
