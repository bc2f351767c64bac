"""Execution of one run: locking, inputs, training or evaluation, and its run folder."""
