"""What is computed once a layer: centred rows, Gram matrices, subspaces, neighbours."""
