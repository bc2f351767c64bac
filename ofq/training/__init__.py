"""Training a stage: data, models, objective, loop, checkpoints; knows no tracker or workflow."""
