"""Training of a stage: data, models, objectives, loop, checkpoints; no tracker or workflow."""
