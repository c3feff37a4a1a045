"""Weights as numbers of values in a table: k-means, quantiles, two values, three values."""
