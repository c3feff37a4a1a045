"""Values during interpretation: traced tensors, and host values that are known while tracing.

A *host value* is a NumPy array: an initializer, a constant, a shape, or what is computed from them. With dynamic
dimensions its elements may be symbolic (``torch.SymInt``, ``torch.SymFloat``); such an array has ``dtype=object``.
Everything else is a ``torch.Tensor``. Keeping shape arithmetic on the host is what makes it fold away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import torch
from torch.utils._python_dispatch import _disable_current_modes

Value: TypeAlias = torch.Tensor | np.ndarray
# A size: an int or a torch.SymInt, which torch annotates as int as well.
Int: TypeAlias = int

# How the weights of the module being traced are found: an array that is one of them gives its parameter or buffer.
_weight_of: ContextVar[Callable[[np.ndarray], torch.Tensor | None] | None] = ContextVar("weight_of", default=None)

# NumPy has no own types for these; ml_dtypes has, and torch reads their bits through an integer of the same size.
_EXTENDED = {
    ml_dtypes.bfloat16: (torch.bfloat16, np.int16, torch.int16),
    ml_dtypes.float8_e4m3fn: (torch.float8_e4m3fn, np.uint8, torch.uint8),
    ml_dtypes.float8_e4m3fnuz: (torch.float8_e4m3fnuz, np.uint8, torch.uint8),
    ml_dtypes.float8_e5m2: (torch.float8_e5m2, np.uint8, torch.uint8),
    ml_dtypes.float8_e5m2fnuz: (torch.float8_e5m2fnuz, np.uint8, torch.uint8),
    ml_dtypes.float8_e8m0fnu: (torch.float8_e8m0fnu, np.uint8, torch.uint8),
}
_EXTENDED_TO_NUMPY = {torch_dtype: (np_dtype, bits) for np_dtype, (torch_dtype, _, bits) in _EXTENDED.items()}

# Narrow integers are stored in the next wider type that torch computes with.
_WIDENED = {
    ml_dtypes.int2: np.int8,
    ml_dtypes.int4: np.int8,
    ml_dtypes.uint2: np.uint8,
    ml_dtypes.uint4: np.uint8,
    ml_dtypes.float4_e2m1fn: np.float32,
}

_TORCH_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
    onnx.TensorProto.COMPLEX64: torch.complex64,
    onnx.TensorProto.COMPLEX128: torch.complex128,
    onnx.TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    onnx.TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    onnx.TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    onnx.TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    onnx.TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
    onnx.TensorProto.FLOAT4E2M1: torch.float32,
    onnx.TensorProto.INT4: torch.int8,
    onnx.TensorProto.UINT4: torch.uint8,
    onnx.TensorProto.INT2: torch.int8,
    onnx.TensorProto.UINT2: torch.uint8,
}

# The narrow integers are listed last, so that what is kept is the type of the storage itself.
_ONNX_DTYPES = {torch_dtype: onnx_dtype for onnx_dtype, torch_dtype in reversed(_TORCH_DTYPES.items())}


def torch_dtype(onnx_dtype: int) -> torch.dtype:
    """The torch type that holds values of an ONNX element type (int4 in int8, and so on).

    Raises:
        ValueError: torch has no type for it (strings).
    """
    if onnx_dtype not in _TORCH_DTYPES:
        raise ValueError(f"element type {onnx.TensorProto.DataType.Name(onnx_dtype)} is not supported")
    return _TORCH_DTYPES[onnx_dtype]


def onnx_dtype(value: Value) -> int:
    """The ONNX element type of a value; symbolic ones are int64."""
    if isinstance(value, torch.Tensor):
        return _ONNX_DTYPES[value.dtype]
    if value.dtype == object:
        return onnx.TensorProto.INT64
    return onnx.helper.np_dtype_to_tensor_dtype(value.dtype)


def is_host(value: Value | None) -> bool:
    """Whether the value is known while tracing (an omitted input is)."""
    return not isinstance(value, torch.Tensor)


def is_symbolic(value: Value | None) -> bool:
    """Whether the value is a host value with symbolic elements."""
    return isinstance(value, np.ndarray) and value.dtype == object


def as_tensor(value: Value) -> torch.Tensor:
    """The value as an operand of a traced operation.

    An initializer becomes the weight of the traced module that carries its name (the same one at each use); any other
    host value becomes a constant; symbolic elements become a small tensor made from the dimensions.
    """
    if isinstance(value, torch.Tensor):
        return value
    if value.dtype == object:
        return _stack_symbols(value)
    find = _weight_of.get()
    weight = find(value) if find is not None else None
    if weight is not None:
        return weight
    with concrete():
        return to_torch(value)


def as_ints(value: Value) -> list[Int]:
    """The elements of a host value as integers, symbolic ones included.

    Raises:
        ValueError: the value depends on the data that runs through the model.
    """
    if isinstance(value, torch.Tensor):
        raise ValueError(
            "needs a value that is known before the model runs (a shape, an axis, a count), "
            "but the model computes it from its inputs"
        )
    elements: list[Any] = value.reshape(-1).tolist()
    return [element if isinstance(element, torch.SymInt) else int(element) for element in elements]  # type: ignore[misc]


def as_int(value: Value) -> Int:
    """The one element of a host value as an integer."""
    (element,) = as_ints(value)
    return element


def as_number(value: Value) -> Any:
    """The one element of a host value as a Python number.

    Raises:
        ValueError: the value depends on the data that runs through the model.
    """
    if isinstance(value, torch.Tensor):
        raise ValueError("needs a number that is known before the model runs, but the model computes it")
    (element,) = value.reshape(-1)
    # Types that NumPy lacks come as scalars of their own.
    number = element.item() if hasattr(element, "item") else element
    return number if isinstance(number, (bool, int, float, complex)) else float(number)


def max_int(a: Int, b: Int) -> Int:
    """The larger of two sizes, without a decision if one is symbolic."""
    larger: Int = torch.sym_max(a, b)  # type: ignore[no-untyped-call]
    return larger


def host(elements: Any) -> np.ndarray:
    """A host value from (nested lists of) numbers and symbols: int64 or float32 unless a symbol is among them."""
    array = np.array(elements, dtype=object)
    kinds = {type(element) for element in array.reshape(-1)}
    if any(issubclass(kind, (torch.SymInt, torch.SymFloat, torch.SymBool)) for kind in kinds):
        return array
    if all(issubclass(kind, (bool, np.bool_)) for kind in kinds) and kinds:
        return array.astype(bool)
    if all(issubclass(kind, (int, np.integer, bool, np.bool_)) for kind in kinds):
        return array.astype(np.int64)
    return array.astype(np.float32)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A real tensor with the elements of an array, any ONNX element type but strings; it owns its memory."""
    kind = array.dtype.type
    if kind in _EXTENDED:
        torch_type, bits, _ = _EXTENDED[kind]
        return torch.from_numpy(np.array(array).view(bits)).view(torch_type)
    return torch.from_numpy(np.array(array, dtype=_WIDENED.get(kind, array.dtype)))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The inverse of `to_torch`, with ml_dtypes where NumPy lacks the type."""
    tensor = tensor.detach().resolve_conj().contiguous()
    if tensor.dtype in _EXTENDED_TO_NUMPY:
        kind, bits = _EXTENDED_TO_NUMPY[tensor.dtype]
        return tensor.view(bits).numpy().view(kind)
    return tensor.numpy()


@contextmanager
def concrete() -> Iterator[None]:
    """Compute on real tensors outside of the trace that is going on, if any."""
    token = _weight_of.set(None)
    try:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            yield
    finally:
        _weight_of.reset(token)


@contextmanager
def weights(find: Callable[[np.ndarray], torch.Tensor | None]) -> Iterator[None]:
    """While tracing: how `as_tensor` finds the weight that an array became."""
    token = _weight_of.set(find)
    try:
        yield
    finally:
        _weight_of.reset(token)


def _stack_symbols(array: np.ndarray) -> torch.Tensor:
    elements = array.reshape(-1).tolist()
    if any(isinstance(element, (float, torch.SymFloat)) for element in elements):
        dtype = torch.float32
    elif all(isinstance(element, (bool, torch.SymBool)) for element in elements):
        dtype = torch.bool
    else:
        dtype = torch.int64
    stacked = torch.stack([torch.scalar_tensor(element, dtype=dtype) for element in elements])
    return stacked.reshape(array.shape)
