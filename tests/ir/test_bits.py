"""Packing, against NumPy's own unpacking of bits."""

from __future__ import annotations

import numpy as np
import pytest

from shave.ir.bits import pack, packed_size, unpack

COUNTS = (0, 1, 3, 7, 8, 9, 63, 200)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", COUNTS)
def test_bits_lie_as_described(bits: int, count: int) -> None:
    numbers = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
    packed = pack(numbers, bits)
    assert packed.shape == (packed_size(count, bits),)
    stream = np.unpackbits(packed, bitorder="little")
    assert not stream[count * bits :].any()
    weights = 1 << np.arange(bits)
    np.testing.assert_array_equal(stream[: count * bits].reshape(count, bits) @ weights, numbers)
    np.testing.assert_array_equal(unpack(packed, bits, count), numbers)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="8 takes more than 3 bits"):
        pack(np.array([8], np.uint8), 3)
    with pytest.raises(ValueError, match="9 numbers of 3 bits take 4 bytes of uint8, not uint8 \\[3\\]"):
        unpack(np.zeros(3, np.uint8), 3, 9)
    with pytest.raises(ValueError, match="not int8"):
        unpack(np.zeros(4, np.int8), 3, 9)
