"""Numbers of one to eight bits, one behind the other in bytes.

Number i takes the bits ``i * bits`` to ``(i + 1) * bits - 1`` of the stream; bit b of the stream is bit ``b % 8`` of
byte ``b // 8``, the lowest one being bit 0. What is left of the last byte is zero. Free of torch: artifacts are read
with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAX_BITS = 8
_TOGETHER = 8
"""As many numbers fill whole bytes, whatever their width: ``bits`` bytes."""


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` numbers take."""
    return -(-count * bits // 8)


def pack(numbers: Array, bits: int) -> Array:
    """Pack unsigned numbers, in row-major order.

    Args:
        numbers: uint8, each below ``2 ** bits``.
        bits: 1 to 8.

    Returns:
        uint8 [packed_size(count, bits)].

    Raises:
        ValueError: A number takes more bits.
    """
    flat = np.ascontiguousarray(numbers, np.uint8).reshape(-1)
    if bits == MAX_BITS:
        return np.array(flat)
    if flat.size and int(flat.max()) >> bits:
        raise ValueError(f"{int(flat.max())} takes more than {bits} bits")
    groups = _in_groups(flat, _TOGETHER)
    packed = np.zeros((len(groups), bits), np.uint8)
    for number in range(_TOGETHER):
        byte, shift = divmod(number * bits, 8)
        packed[:, byte] |= groups[:, number] << np.uint8(shift)
        if shift + bits > 8:
            packed[:, byte + 1] |= groups[:, number] >> np.uint8(8 - shift)
    return np.asarray(packed.reshape(-1)[: packed_size(flat.size, bits)])


def unpack(packed: Array, bits: int, count: int) -> Array:
    """Give ``count`` numbers as uint8; undoes :func:`pack`.

    Raises:
        ValueError: The bytes are not as many as that takes.
    """
    if packed.dtype != np.uint8 or packed.shape != (packed_size(count, bits),):
        raise ValueError(
            f"{count} numbers of {bits} bits take {packed_size(count, bits)} bytes of uint8, not {packed.dtype} "
            f"{list(packed.shape)}"
        )
    if bits == MAX_BITS:
        return np.array(packed)
    groups = _in_groups(packed, bits)
    numbers = np.empty((len(groups), _TOGETHER), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for number in range(_TOGETHER):
        byte, shift = divmod(number * bits, 8)
        value = groups[:, byte] >> np.uint8(shift)
        if shift + bits > 8:
            value |= groups[:, byte + 1] << np.uint8(8 - shift)
        numbers[:, number] = value & mask
    return np.asarray(numbers.reshape(-1)[:count])


def _in_groups(flat: Array, size: int) -> Array:
    """As rows of ``size``, the last one filled up with zeros."""
    missing = -flat.size % size
    return np.pad(flat, (0, missing)).reshape(-1, size) if missing else flat.reshape(-1, size)
