"""A study or a result as one self-contained page."""
