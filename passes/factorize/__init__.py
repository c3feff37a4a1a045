"""Layers split into chains of smaller ones: singular values, Tucker, CP, tensor trains, separable convolutions."""
