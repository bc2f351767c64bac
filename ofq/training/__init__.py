"""Training of a stage: data, models, objectives, loop, checkpoints; no tracker or workflow."""

import ofq.quantization  # noqa: F401 - before timm, which it makes importable
