"""Declaration of torchvision's operators, so that timm can be imported with a CPU build of torch.

torchvision's wheels carry an extension built for CUDA, which a CPU build of torch can't load. Then
``import timm`` fails, because torchvision attaches shape functions to operators that nothing has
declared. Declaring their schemas is enough, since this package calls none of them.
"""

import importlib.machinery
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the declarations last as long as this object


def _extension() -> Path | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    paths = (folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in (*paths, folder / "_C.so") if path.exists()), None)


def _loads(extension: Path) -> bool:
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
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True
