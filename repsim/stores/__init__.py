"""Write, read and align activation stores: HDF5 files with the activations of one model."""
