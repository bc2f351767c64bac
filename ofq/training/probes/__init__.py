"""What training records of single weights: paths, gradient signs, joint flips, histograms.

ProbeConfig reads the model and changes nothing of it, so a run's numbers don't depend on it.
"""

from ofq.training.probes.part import Table
from ofq.training.probes.probes import STEPS, Probes

__all__ = ["STEPS", "Probes", "Table"]
