"""Simulations of `validate_statistics.py`, one part of it in each file."""
