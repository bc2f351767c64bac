"""Config models, grid expansion and run identity; imports neither torch nor MLflow."""

from ofq.study.config import Recipe, Site, Study
from ofq.study.fields import Stage, parse_bits
from ofq.study.method import Method, Quantization
from ofq.study.run import Cell, Grid, Run, RunConfig, TrainedRun
from ofq.study.stage import ProbeConfig, Resources, Training
from ofq.study.workspace import Workspace

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
