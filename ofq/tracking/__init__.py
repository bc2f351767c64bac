"""The run folder, which is the record, and its mirror in MLflow."""

from ofq.tracking.folder import RunFolder

__all__ = ["RunFolder"]
