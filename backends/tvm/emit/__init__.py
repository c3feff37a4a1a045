"""One emitter per operator, in a file per family; importing this package registers all of them."""

from shave.backends.tvm.emit import (
    attention,
    control,
    convolution,
    creation,
    elementwise,
    indexing,
    matmul,
    movement,
    normalisation,
    permutation,
    pooling,
    quantization,
    reduction,
    resample,
    sorting,
    winograd,
)

__all__ = [
    "attention",
    "control",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "matmul",
    "movement",
    "normalisation",
    "permutation",
    "pooling",
    "quantization",
    "reduction",
    "resample",
    "sorting",
    "winograd",
]
