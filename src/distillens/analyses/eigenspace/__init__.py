"""Learning along the eigenvectors of a layer's inputs, for runs that repeat one recipe."""
