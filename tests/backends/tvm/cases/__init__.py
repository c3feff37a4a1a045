"""Calls of operators with inputs, per family: what compiled code must compute as torch does."""

from tests.backends.tvm.cases import (
    convolution,
    elementwise,
    indexing,
    matmul,
    movement,
    normalisation,
    pooling,
    quantization,
    reduction,
    resample,
    winograd,
)
from tests.backends.tvm.cases.values import Case

FAMILIES = {
    "convolution": convolution.cases,
    "elementwise": elementwise.cases,
    "indexing": indexing.cases,
    "matmul": matmul.cases,
    "movement": movement.cases,
    "normalisation": normalisation.cases,
    "pooling": pooling.cases,
    "quantization": quantization.cases,
    "reduction": reduction.cases,
    "resample": resample.cases,
    "winograd": winograd.cases,
}

__all__ = ["FAMILIES", "Case"]
