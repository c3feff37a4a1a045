"""Lowering to Apache TVM: own kernels for the hot operators, TVM for the rest."""
