"""All pairs of layers: planned, prepared once a layer, summed, shared among processes, resumed, resampled."""
