"""Recipes that prepare one layer: centred rows, Gram matrices, subspaces, neighbours."""
