"""Passes that change nothing but the size of the graph."""
