"""Weights in a small form, from which an artifact makes what its kernels read when it is loaded.

A form is a kind with a few small tensors, its *parts*, and the packing that follows:

- ``lookup``: ``codes``, whole numbers of 1 to 8 bits packed as in :mod:`shave.ir.bits`, and ``codebook``
  [..., entries]: a table for each place of the leading axes, along which the codes are broadcast;
- ``affine``: ``codes``, and ``scale`` and ``zero``, which broadcast against them: ``(code - zero) * scale``;
- ``integers``: ``codes``, and ``low``, a number to add to each; its type (8 or 16 bits, or float32) is the weight's;
- ``narrow``: ``values`` in a narrower float type.

Codes lie in the order of the program, without the zeros that kernels want between channels: a form packed ahead would
have to store these too, and tables and scales of channels would have to follow the codes to their places. So packing
comes behind decoding, one weight at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from shave.backends.packing import AS_IT_IS, Packing
from shave.backends.weights import numpy_dtype
from shave.ir.bits import MAX_BITS, pack, packed_size, unpack
from shave.ir.errors import ArtifactError

Array = npt.NDArray[Any]

PARTS = {
    "lookup": ("codes", "codebook"),
    "affine": ("codes", "scale", "zero"),
    "integers": ("codes", "low"),
    "narrow": ("values",),
}
"""Kinds, and the parts of each."""
MAX_GROWTH = 1024
"""Bytes that a byte of the stored parts may become: one bit for each float32, and zeros in most places of a block."""

_NARROW = ("float16", "bfloat16")
_PIECE = 1 << 18  # weights that are decoded at a time
_LARGEST = {"int8": 127, "int16": 1 << 14, "float32": 1 << 14}  # whole numbers that codes may stand for, by type
_LARGEST_ZERO = 1 << 23  # what float32 holds exactly, less any code
_SAVING, _SHARE = 128, 32  # bytes, and share of them: with less to save a weight is used where it lies in the file


@dataclass(frozen=True)
class Encoding:
    """How a weight is made from its parts.

    Attributes:
        kind: One of :data:`PARTS`.
        bits: Of a code; 0 where there are none.
        view: The shape in which the codes are decoded.
        packing: What is done to the decoded values.
    """

    kind: str
    bits: int
    view: tuple[int, ...]
    packing: Packing = AS_IT_IS

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight; its dtype is float32, or that of the integers."""
        return self.packing.shape(self.view)

    def check(self, name: str, parts: Mapping[str, Array]) -> None:
        """Refuse what does not fit together, before anything is allocated.

        Raises:
            ArtifactError: Names the weight and says what does not fit.
        """
        try:
            self._check(parts)
        except ValueError as error:
            raise ArtifactError(f"it is refused: weight {name!r} cannot be decoded: {error}") from error

    def _check(self, parts: Mapping[str, Array]) -> None:
        if tuple(parts) != PARTS.get(self.kind):
            raise ValueError(f"kind {self.kind!r} of {', '.join(parts)}")
        if not self.view or not all(type(size) is int and size >= 0 for size in self.view):
            raise ValueError(f"view {list(self.view)}")
        if 4 * max(prod(self.view), prod(self.shape)) > MAX_GROWTH * sum(part.nbytes for part in parts.values()):
            raise ValueError(f"{list(self.shape)} is too much for what is stored")
        if self.kind == "narrow":
            (values,) = parts.values()
            if self.bits or values.dtype.name not in _NARROW or values.shape != self.view:
                raise ValueError(f"values {values.dtype} {list(values.shape)}")
            return
        codes, *others = parts.values()
        if not 1 <= self.bits <= MAX_BITS or codes.dtype != np.uint8:
            raise ValueError(f"codes of {self.bits} bits in {codes.dtype}")
        if codes.shape != (packed_size(prod(self.view), self.bits),):
            raise ValueError(f"codes {list(codes.shape)} for {list(self.view)} of {self.bits} bits")
        if self.kind == "integers":
            (low,) = others
            if low.dtype.name not in _LARGEST or low.shape != (1,) or not float(low[0]).is_integer():
                raise ValueError(f"{low.dtype} {list(low.shape)}")
            if not -_LARGEST[low.dtype.name] - 1 <= low[0] <= _LARGEST[low.dtype.name] - (1 << self.bits) + 1:
                raise ValueError(f"codes of {self.bits} bits on top of {low[0]} in {low.dtype}")
            return
        for part in others:
            leading = part.shape[:-1] if self.kind == "lookup" else part.shape
            wanted = np.int32 if part is parts.get("zero") else np.float32
            fits = len(leading) == len(self.view) and all(s in (1, v) for s, v in zip(leading, self.view, strict=True))
            if part.dtype != wanted or not fits or (self.kind == "lookup" and not 1 <= part.shape[-1] <= 1 << MAX_BITS):
                raise ValueError(f"{part.dtype} {list(part.shape)} for {list(self.view)}")
        zero = parts.get("zero")
        if zero is not None and zero.size and not -_LARGEST_ZERO <= int(zero.min()) <= int(zero.max()) <= _LARGEST_ZERO:
            raise ValueError("a zero point is out of range")

    def decode(self, parts: Mapping[str, Array]) -> Array:
        """Make the weight; while it is packed there are two of it.

        Raises:
            ArtifactError: A code is beyond its table.
        """
        return self.packing.apply(self._values(parts))

    def _values(self, parts: Mapping[str, Array]) -> Array:
        if self.kind == "narrow":
            return parts["values"].astype(np.float32)
        codes, table, *more = parts.values()
        numbers = unpack(codes, self.bits, prod(self.view)).reshape(self.view)
        if self.kind == "integers":
            return self._integers(numbers, table)
        entries = table.shape[-1]
        if self.kind == "lookup" and entries < 1 << self.bits and numbers.size and int(numbers.max()) >= entries:
            raise ArtifactError(f"a code is beyond the {entries} entries of its table")
        values = np.empty(self.view, np.float32)
        for some in self._pieces():
            if self.kind == "affine":
                scale, (zero,) = _of(table, some), (_of(part, some) for part in more)
                # Exact, as both are whole numbers below 2 ** 24.
                np.subtract(numbers[some], zero.astype(np.float32), out=values[some])
                values[some] *= scale
            else:
                tables = _of(table, some)
                firsts = np.arange(tables.size // entries, dtype=np.int32).reshape(tables.shape[:-1])
                places = numbers[some] if tables.size == entries else firsts * np.int32(entries) + numbers[some]
                # They are all within, so that clipping, which is faster than checking, never happens.
                np.take(tables.reshape(-1), places, mode="clip", out=values[some])
        return values

    def _integers(self, numbers: Array, low: Array) -> Array:
        values = np.empty(self.view, low.dtype)
        for some in self._pieces():
            values[some] = numbers[some] + low.astype(np.int16)
        return values

    def _pieces(self) -> Iterator[slice]:
        """Slices that cut the view along its first axis, so that what is computed on the way stays small."""
        rows = max(1, _PIECE // max(1, prod(self.view[1:])))
        for start in range(0, self.view[0], rows):
            yield slice(start, start + rows)

    def to_json(self) -> dict[str, Any]:
        """Give plain data that :meth:`from_json` takes back."""
        return {"kind": self.kind, "bits": self.bits, "view": list(self.view), "packing": self.packing.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Encoding:
        """Rebuild; :meth:`check` finds out whether it makes sense.

        Raises:
            TypeError: The kind is unknown, or a number is none.
        """
        if type(data["bits"]) is not int or data["kind"] not in PARTS:
            raise TypeError(f"encoding {data['kind']!r} of {data['bits']!r} bits")
        return Encoding(data["kind"], data["bits"], tuple(data["view"]), Packing.from_json(data["packing"]))


@dataclass(frozen=True)
class Encoded:
    """A weight in its small form.

    Attributes:
        encoding: How it is made.
        parts: From what, in the order of :data:`PARTS`.
    """

    encoding: Encoding
    parts: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.nbytes for part in self.parts.values())

    def then(self, packing: Packing) -> Encoded:
        """The same, packed further."""
        return Encoded(replace(self.encoding, packing=self.encoding.packing.then(packing)), self.parts)

    def stands_for(self, array: Array) -> bool:
        """Whether decoding gives an array to the last bit, and is smaller by enough to matter."""
        if self.nbytes + max(_SAVING, array.nbytes // _SHARE) > array.nbytes:
            return False
        try:
            self.encoding.check("", self.parts)
        except ArtifactError:  # whoever loads it would refuse it too
            return False
        made = self.encoding.decode(self.parts)
        same = (made.shape, made.dtype) == (array.shape, array.dtype)
        return same and made.tobytes() == array.tobytes()


def integers(array: Array, dtype: str) -> Encoded:
    """Whole numbers of at most 8 bits, in no more of them than their range takes; decoded as ``dtype``."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    bits = max(1, (high - low).bit_length())
    low = min(low, _LARGEST[dtype] - (1 << bits) + 1)  # no code may stand for more than the type holds
    codes = pack((array.astype(np.int16) - low).astype(np.uint8), bits)
    return Encoded(Encoding("integers", bits, array.shape), {"codes": codes, "low": np.array([low], dtype)})


def narrow(array: Array) -> Encoded | None:
    """An array of float32 in a type of half the size, if that holds each of its values."""
    if array.dtype != np.float32 or array.nbytes < 2048:
        return None
    sample = array.reshape(-1)[:1024]
    for name in _NARROW:
        dtype = numpy_dtype(name)
        if np.array_equal(_through(sample, dtype), sample.view(np.uint32)):
            encoded = Encoded(Encoding("narrow", 0, array.shape), {"values": _narrowed(array, dtype)})
            if encoded.stands_for(array):
                return encoded
    return None


def _through(array: Array, dtype: np.dtype[Any]) -> Array:
    return _narrowed(array, dtype).astype(np.float32).view(np.uint32)


def _narrowed(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _of(part: Array, some: slice) -> Array:
    """What of a part belongs to a piece of the view."""
    return part if len(part) == 1 else part[some]


def part_names(name: str, kind: str) -> Sequence[tuple[str, str]]:
    """The parts of a kind, each with the name of its tensor in the file."""
    return [(part, f"{name}:{part}") for part in PARTS[kind]]
