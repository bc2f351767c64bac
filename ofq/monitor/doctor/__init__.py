"""Diagnosis of run folders, with remedies; reads only, and needs no torch."""

from ofq.monitor.doctor.examination import Diagnosis, examine
from ofq.monitor.doctor.finding import Finding

__all__ = ["Diagnosis", "Finding", "examine"]
