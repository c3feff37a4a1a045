"""The order in which a kernel reads a weight, as data: a few steps of NumPy that need no compiler.

So weights can be stored in the order in which the program has them and be packed when an artifact is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MAX_AXES = 16


@dataclass(frozen=True)
class Packing:
    """Steps, each of which takes the result of the one before.

    Attributes:
        steps: Name and numbers of each: ``reshape`` (to a shape), ``pad`` (zeros behind, to a shape), ``transpose``
            (the order of the axes), ``diagonal`` (none: [a, m, r, c, ...] become blocks on the diagonal of zeros
            [a, m, r, m, c, ...]), ``shifts`` (none: the n elements of the last axis become [2 n - 1, n]: moved to the
            front by n - 1 places, by one less ..., at last to the end by n - 1; zeros come in) and ``blocks`` (a
            length: the first axis is cut in blocks of it, the last perhaps shorter; in each the first two axes change
            places, and all are laid one behind the other, flat).
    """

    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def reshape(self, *shape: int) -> Packing:
        """See the same elements in another shape."""
        return Packing((*self.steps, ("reshape", shape)))

    def pad(self, *shape: int) -> Packing:
        """Put zeros behind along each axis, up to a shape."""
        return Packing((*self.steps, ("pad", shape)))

    def transpose(self, *order: int) -> Packing:
        """Permute the axes."""
        return Packing((*self.steps, ("transpose", order)))

    def diagonal(self) -> Packing:
        """Lay the matrices of the second axis on a diagonal."""
        return Packing((*self.steps, ("diagonal", ())))

    def shifts(self) -> Packing:
        """Repeat the last axis, moved by all distances that leave an element."""
        return Packing((*self.steps, ("shifts", ())))

    def blocks(self, length: int) -> Packing:
        """Cut the first axis, and swap the first two in each block."""
        return Packing((*self.steps, ("blocks", (length,))))

    def then(self, other: Packing) -> Packing:
        """The steps of both."""
        return Packing((*self.steps, *other.steps))

    def shape(self, given: Sequence[int]) -> tuple[int, ...]:
        """Shape of the result for that of what is packed; allocates nothing.

        Raises:
            ValueError: The steps do not fit, or are none.
        """
        now = tuple(given)
        for name, numbers in self.steps:
            if len(numbers) > _MAX_AXES or not all(type(k) is int and k >= 0 for k in numbers):
                raise ValueError(f"{name} {list(numbers)}")
            grown = len(numbers) == len(now) and all(new >= old for new, old in zip(numbers, now, strict=False))
            if (name == "reshape" and prod(numbers) == prod(now)) or (name == "pad" and grown):
                now = numbers
            elif name == "diagonal" and not numbers and len(now) >= 4:
                now = (*now[:3], now[1], *now[3:])
            elif name == "shifts" and not numbers and now and now[-1]:
                now = (*now[:-1], 2 * now[-1] - 1, now[-1])
            elif name == "transpose" and sorted(numbers) == list(range(len(now))):
                now = tuple(now[k] for k in numbers)
            elif name == "blocks" and len(numbers) == 1 and numbers[0] > 0 and len(now) >= 2:
                now = (prod(now),)
            else:
                raise ValueError(f"{name} {list(numbers)} of {list(now)}")
        return now

    def apply(self, array: Array) -> Array:
        """Pack; the result is contiguous.

        Raises:
            ValueError: The steps do not fit the array.
        """
        self.shape(array.shape)
        for name, numbers in self.steps:
            if name == "reshape":
                array = array.reshape(numbers)
            elif name == "pad":
                array = _padded(array, numbers)
            elif name == "diagonal":
                array = _diagonal(array)
            elif name == "shifts":
                array = _shifts(array)
            elif name == "transpose":
                array = array.transpose(numbers)
            else:
                array = _blocks(array, numbers[0])
        return np.ascontiguousarray(array).reshape(array.shape)

    def to_json(self) -> list[Any]:
        """Give plain data that :meth:`from_json` takes back."""
        return [[name, list(numbers)] for name, numbers in self.steps]

    @staticmethod
    def from_json(data: Any) -> Packing:
        """Rebuild; that the steps make sense is found out by :meth:`shape`."""
        return Packing(tuple((str(name), tuple(numbers)) for name, numbers in data))


AS_IT_IS = Packing()
"""No step at all."""


def _padded(array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape == shape:
        return array
    padded = np.zeros(shape, array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


def _diagonal(array: Array) -> Array:
    _, count, rows, columns, *rest = array.shape
    spread = np.zeros((len(array), count, rows, count, columns, *rest), array.dtype)
    each = np.arange(count)
    spread[:, each, :, each] = np.moveaxis(array, 1, 0)
    return spread


def _shifts(array: Array) -> Array:
    count = array.shape[-1]
    made = np.zeros((*array.shape[:-1], 2 * count - 1, count), array.dtype)
    for place in range(2 * count - 1):
        distance = place - count + 1
        inside = slice(max(0, distance), count + min(0, distance))
        made[..., place, inside] = array[..., max(0, -distance) : count - max(0, distance)]
    return made


def _blocks(array: Array, length: int) -> Array:
    laid = np.empty(array.size, array.dtype)
    row = array[:1].size
    for start in range(0, len(array), length):
        piece = array[start : start + length].swapaxes(0, 1)
        laid[start * row : start * row + piece.size].reshape(piece.shape)[...] = piece
    return laid
