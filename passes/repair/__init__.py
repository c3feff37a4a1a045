"""Mends a program after a cut, without training: layer by layer, from calibration data."""
