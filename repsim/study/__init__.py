"""Are representations universal? Statistics over comparisons of many models (docs/universality.md)."""
