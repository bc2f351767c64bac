"""Export of finished runs as packed weights or ONNX, and loading of packed files."""

from ofq.export.packed import export_run, load_packed, save_packed

__all__ = ["export_run", "load_packed", "save_packed"]
