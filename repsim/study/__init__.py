"""Statistics of studies: how universal the representations of many models are (docs/universality.md)."""
