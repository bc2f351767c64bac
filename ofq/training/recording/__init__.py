"""What training records of single weights: paths, gradient signs, joint flips, histograms.

Recording reads the model and changes nothing of it, so a run's numbers don't depend on it.
"""

from ofq.training.recording.part import Table
from ofq.training.recording.recordings import STEPS, Recordings

__all__ = ["STEPS", "Recordings", "Table"]
