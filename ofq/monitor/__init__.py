"""Monitoring of runs from outside: status, diagnosis, and planning of costs."""
