"""Probes of single weights in training: paths, gradient signs, joint flips, histograms.

Probes only read the model, so a run's numbers don't depend on them.
"""

from ofq.training.probes.probe import Table
from ofq.training.probes.probes import STEPS, Probes

__all__ = ["STEPS", "Probes", "Table"]
