"""Declaration of torchvision's operators, so that timm can be imported with a CPU build of torch.

torchvision's wheels carry an extension built for CUDA, which a CPU build of torch can't load. Then
``import timm`` fails, because torchvision attaches shape functions to operators that nothing has
declared. Declaring their schemas is enough, since this package calls none of them.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: Any = None  # the declarations last as long as this object


def _extension() -> Path | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    paths = (folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in (*paths, folder / "_C.so") if path.exists()), None)


def _loads(extension: Path) -> bool:
    import torch  # by whoever imports torchvision anyway

    try:
        torch.ops.load_library(str(extension))
    except (ImportError, OSError):
        return False
    return True


def install() -> bool:
    """Declare torchvision's operators if its own extension can't be loaded.

    Where the extension can be loaded this does nothing: declaring an operator twice would abort the
    process.

    Returns:
        Whether the operators were declared here.
    """
    global _library
    if _library is not None:
        return True
    extension = _extension()
    if extension is None or _loads(extension):
        return False
    import torch

    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True


class _Installer(MetaPathFinder):
    """Finder that finds nothing, and calls :func:`install` when torchvision is looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)  # first, since installing looks for torchvision too
            install()


def install_when_needed() -> None:
    """Let :func:`install` be called just before torchvision is imported, if it isn't yet.

    So ``import ofq`` makes timm importable without importing torch itself.
    """
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _Installer())
