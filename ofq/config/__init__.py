"""Config models, grid expansion and run identity; imports neither torch nor MLflow."""

from ofq.config.fields import Stage
from ofq.config.method import Method, Quantization
from ofq.config.run import Cell, Grid, Run, RunConfig, TrainedRun
from ofq.config.schema import Recipe, Site, Study
from ofq.config.stage import ProbeConfig, Resources, Training
from ofq.config.workspace import Workspace
from ofq.values import parse_bits

__all__ = [
    "Cell",
    "Grid",
    "Method",
    "ProbeConfig",
    "Quantization",
    "Recipe",
    "Resources",
    "Run",
    "RunConfig",
    "Site",
    "Stage",
    "Study",
    "TrainedRun",
    "Training",
    "Workspace",
    "parse_bits",
]
