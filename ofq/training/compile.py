"""Compiled training: ``torch.compile`` of a model's blocks, which take most of a step's time."""

import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn
from torch._functorch import config as functorch

from ofq.errors import TryAgain, UserError
from ofq.quantization.layers import QuantizedConv2d
from ofq.stopping import Interrupted, StopRequest

_COMPILERS = ("g++", "clang++")
_KEPT = 0.7  # share of activations kept for backward; a CPU recomputes the rest at little cost
_LINKING = 10.0  # seconds without a change after which no linker still writes a file


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
            f"resources.compile is true, but there is no C++ compiler ({compiler or 'g++'}); "
            "install one, name it in CXX, or set compile: false"
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


@contextmanager
def interruptible(stop: StopRequest) -> Iterator[None]:
    """Convert errors of interrupted compilers, which are no failures of the run.

    Args:
        stop: The stop request.

    Raises:
        Interrupted: A stop was requested; its signal may have killed compilers too.
        TryAgain: A compiler was killed, or a killed process left an incomplete compiled header,
            which is removed.
        OSError: Torch's cache can't be written.
    """
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if stop.cause is not None:
            raise Interrupted(stop.cause) from error
        if isinstance(error.inner_exception, OSError):
            raise error.inner_exception from None
        if "Killed signal terminated program" in str(error):
            raise TryAgain("a compiler was killed, perhaps for want of memory") from error
        match = re.search(r" -include (\S+)", str(error))
        if match is None or "cannot read PCH file" not in str(error):
            raise
        header = Path(f"{match[1]}.gch")
        header.unlink(missing_ok=True)
        raise TryAgain(
            f"{header}, in torch's cache, was left half-written by a process that was killed; it "
            "is removed"
        ) from error


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
