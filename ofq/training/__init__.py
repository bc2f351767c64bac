"""Training a stage: data, models, objective, loop and checkpoints; knows of no tracker or workflow."""
