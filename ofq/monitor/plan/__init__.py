"""What a study will cost: runs, hours and wall-clock time, measured where possible."""
