"""Compare all pairs of layers: planning, preparation, sums over all pairs, checkpoints, resampling."""
