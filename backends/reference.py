"""The reference backend: a program run by torch, with the call of an artifact."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from shave.backends.weights import Array, numpy_dtype
from shave.ir.dtypes import dtype_name, torch_dtype
from shave.ir.errors import SignatureError
from shave.ir.program import Program
from shave.ir.signature import Signature

_USER_DEFINED = 2  # what NumPy says of dtypes that other packages registered
_CARRIERS = {2: (np.uint16, torch.uint16), 1: (np.uint8, torch.uint8)}
"""Stand in for dtypes that NumPy and torch cannot exchange, by their size in bytes."""


class Reference:
    """Runs a program in torch; takes and gives NumPy arrays as :class:`shave.backends.runtime.Artifact` does."""

    def __init__(self, program: Program) -> None:
        self.program = program

    @property
    def signature(self) -> Signature:
        """Names, shapes and dtypes of inputs and outputs."""
        return self.program.signature

    def __call__(self, *inputs: Any, **named: Any) -> Array | tuple[Array, ...]:
        """Run the program.

        Returns:
            The output, or a tuple of them if there are several.

        Raises:
            SignatureError: Wrong number, name, shape or dtype of the inputs.
        """
        values = self.signature.bind(inputs, named)
        tensors = [_to_torch(spec.name, value) for spec, value in zip(self.signature.inputs, values, strict=True)]
        outputs = self.program(*tensors)
        if isinstance(outputs, torch.Tensor):
            return _to_numpy(outputs)
        return tuple(_to_numpy(output) for output in outputs)


def _to_torch(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise SignatureError(f"input {name!r} is a {type(value).__name__}, not an array")
    array = np.array(value, dtype=value.dtype.newbyteorder("="))  # torch takes neither read-only nor reversed arrays
    if array.dtype.isbuiltin == _USER_DEFINED:
        carrier, _ = _CARRIERS[array.dtype.itemsize]
        return torch.from_numpy(array.view(carrier)).view(torch_dtype(array.dtype.name))
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise SignatureError(f"input {name!r} has dtype {array.dtype}, which torch lacks") from error


def _to_numpy(tensor: torch.Tensor) -> Array:
    """A copy: a program may return an input, a weight or a view that shares memory."""
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    dtype = numpy_dtype(dtype_name(tensor.dtype))
    if dtype.isbuiltin == _USER_DEFINED:
        return tensor.view(_CARRIERS[dtype.itemsize][1]).numpy().view(dtype)
    return tensor.numpy()
