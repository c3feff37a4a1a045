"""Quantization: where, with which ranges, and what mends its damage."""
