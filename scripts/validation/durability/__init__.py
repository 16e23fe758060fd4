"""Test what kills, full disks, concurrent processes and damage do to files; run by scripts/validation/torture."""
