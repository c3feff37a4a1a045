"""Structured pruning: which channels belong together, which to cut, the cut itself, and the proof that it is right."""
