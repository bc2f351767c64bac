"""Config models, grid expansion and run identity; imports neither torch nor MLflow."""

from ofq.study.config import (
    Method,
    Quantization,
    Recipe,
    Resources,
    Site,
    Stage,
    Study,
    Training,
    parse_bits,
)
from ofq.study.grid import Cell, Grid, Run, RunConfig
from ofq.study.workspace import Workspace

__all__ = [
    "Cell",
    "Grid",
    "Method",
    "Quantization",
    "Recipe",
    "Resources",
    "Run",
    "RunConfig",
    "Site",
    "Stage",
    "Study",
    "Training",
    "Workspace",
    "parse_bits",
]
