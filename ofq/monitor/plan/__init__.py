"""Plan of a study's costs: runs, hours and wall-clock time, measured where possible."""
