"""Is a run folder sound, and if not, what to do? Reads only, and needs no torch."""

from ofq.monitor.doctor.examination import Diagnosis, examine
from ofq.monitor.doctor.finding import Finding

__all__ = ["Diagnosis", "Finding", "examine"]
