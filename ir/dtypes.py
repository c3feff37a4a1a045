"""Names of dtypes, as NumPy and ml_dtypes write them."""

import torch

from shave.ir.errors import UnsupportedError

_TORCH_OF_NAME: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
        "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
        "float8_e5m2fnuz",
    )
}  # fmt: skip
_NAME_OF_TORCH = {dtype: name for name, dtype in _TORCH_OF_NAME.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """NumPy's name of a torch dtype.

    Raises:
        UnsupportedError: The dtype has no counterpart.
    """
    if dtype not in _NAME_OF_TORCH:
        raise UnsupportedError(f"dtype {dtype} is not supported; use one of {', '.join(_TORCH_OF_NAME)}")
    return _NAME_OF_TORCH[dtype]


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a NumPy name.

    Raises:
        UnsupportedError: No torch dtype has that name.
    """
    if name not in _TORCH_OF_NAME:
        raise UnsupportedError(f"dtype {name!r} is not supported; use one of {', '.join(_TORCH_OF_NAME)}")
    return _TORCH_OF_NAME[name]
