"""Data sets for training and evaluation: in memory, or image files in several layouts."""
