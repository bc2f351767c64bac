"""Training a stage: data, models, objective, loop, checkpoints; knows no tracker or workflow."""

import ofq.quantization  # noqa: F401 - before timm, which it makes importable
