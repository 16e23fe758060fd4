"""What the machine gives: files, progress bars, processes, devices, signals, text tables."""
