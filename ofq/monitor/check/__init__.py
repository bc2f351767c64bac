"""Checks of whole studies before anything is trained; loads torch only where it must."""
