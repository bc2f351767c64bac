"""Finished runs as packed weights or ONNX, and models from packed files."""

from ofq.export.packed import export_run, load_packed, save_packed

__all__ = ["export_run", "load_packed", "save_packed"]
