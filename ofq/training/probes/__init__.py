"""Probes in training: single weights' paths, gradient signs, joint flips, histograms; activations.

Probes only read the model, so a run's numbers don't depend on them.
"""

from ofq.training.probes.activations import measures
from ofq.training.probes.probe import Table
from ofq.training.probes.probes import STEPS, Probes

__all__ = ["STEPS", "Probes", "Table", "measures"]
