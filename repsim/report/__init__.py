"""Write studies and results as one self-contained, interactive HTML page."""
