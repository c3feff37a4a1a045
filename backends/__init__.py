"""Lowering of a program to something that runs: torch for reference, Apache TVM for deployment."""
