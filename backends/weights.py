"""Weights as a safetensors file (https://github.com/huggingface/safetensors#format) that can be used in place.

The format wants tensors one after the other without holes. To have as many as possible start at a multiple of 64
bytes, the header is padded with spaces, tensors whose size is a multiple of 64 come first, and the rest follows,
largest first.

An artifact has two such files. Tensors that are too small to be worth a place and a line of the header of their own,
and integers that deflating makes smaller (most are close to zero, or zeros that fill up vectors), go into one that is
deflated as a whole and inflated when it is loaded; the others into one that is mapped into memory.
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shave.backends.container import ALIGNMENT
from shave.ir.errors import ArtifactError, UnsupportedError

Array = npt.NDArray[Any]

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}
_HEADER_LIMIT = 100_000_000  # the format's own limit
_SHARE = 32  # a part in so many is worth inflating for
_TINY = 1 << 11  # bytes of a tensor of which the line in the header is about such a part
_INFLATE = 1 << 18  # bytes of integers that zlib takes less than 2 ms for


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name, in the machine's byte order; narrow floats come from ml_dtypes."""
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def split(weights: Sequence[tuple[str, Array]]) -> tuple[list[tuple[str, Array]], list[tuple[str, Array]]]:
    """Those that go into the file that is deflated, and the others."""
    small = [_worth_deflating(array) for _, array in weights]
    chosen = list(zip(weights, small, strict=True))
    return [each for each, here in chosen if here], [each for each, here in chosen if not here]


def _worth_deflating(array: Array) -> bool:
    if array.nbytes <= _TINY:
        return True
    if array.dtype.kind not in "iu" or array.nbytes > _INFLATE:
        return False
    deflated = len(zlib.compress(np.ascontiguousarray(array).tobytes()))
    return deflated + array.nbytes // _SHARE < array.nbytes


def encode(weights: Sequence[tuple[str, Array]]) -> Iterator[bytes | memoryview]:
    """Give the content of the file piece by piece.

    Raises:
        UnsupportedError: A dtype has no place in the format.
    """
    ordered = sorted(weights, key=lambda item: (item[1].nbytes % ALIGNMENT != 0, -item[1].nbytes, item[0]))
    header: dict[str, dict[str, Any]] = {}
    position = 0
    for name, array in ordered:
        if array.dtype.name not in _CODES:
            raise UnsupportedError(f"weight {name!r} has dtype {array.dtype.name}; use one of {', '.join(_CODES)}")
        end = position + array.nbytes
        code = _CODES[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for _, array in ordered:
        native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        yield native.reshape(-1).view(np.uint8).data


def decode(content: memoryview) -> dict[str, Array]:
    """Give the tensors of the file by name, as views of ``content``.

    Raises:
        ArtifactError: The content breaks a rule of the format.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        if len(content) < 8 or length > min(len(content) - 8, _HEADER_LIMIT):
            raise ValueError("the header is cut off")
        header = json.loads(bytes(content[8 : 8 + length]))
        return _views(header, content[8 + length :])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"the weights are not in safetensors format: {error}") from error


def _views(header: Mapping[str, Any], data: memoryview) -> dict[str, Array]:
    views: dict[str, Array] = {}
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"shape of {name!r}")
        dtype = numpy_dtype(_NAMES[entry["dtype"]])
        if start != position or end - start != math.prod(shape) * dtype.itemsize or end > len(data):
            raise ValueError(f"place of {name!r}")
        views[name] = np.frombuffer(data[start:end], dtype=np.uint8).view(dtype).reshape(shape)
        position = end
    if position != len(data):
        raise ValueError("bytes after the last tensor")
    return views
