"""Utilities for files, progress, processes, devices, memory, signals, options and text tables."""
