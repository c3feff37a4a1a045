"""The steps of packing, each against plain loops."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shave.backends.packing import AS_IT_IS, Packing

ARRAY = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5) + 1


def test_reshape_pad_and_transpose() -> None:
    packing = Packing().transpose(2, 0, 1).pad(8, 2, 4).reshape(2, 4, 8)
    wanted = np.zeros((8, 2, 4), np.float32)
    for i, j, k in np.ndindex(2, 3, 5):
        wanted[k, i, j] = ARRAY[i, j, k]
    result = packing.apply(ARRAY)
    np.testing.assert_array_equal(result, wanted.reshape(2, 4, 8))
    assert result.flags.c_contiguous
    assert packing.shape(ARRAY.shape) == result.shape


def test_matrices_on_a_diagonal() -> None:
    array = np.arange(2 * 3 * 2 * 4 * 5).reshape(2, 3, 2, 4, 5)
    packing = Packing().diagonal()
    wanted = np.zeros((2, 3, 2, 3, 4, 5), array.dtype)
    for a, m, r, c, k in np.ndindex(*array.shape):
        wanted[a, m, r, m, c, k] = array[a, m, r, c, k]
    np.testing.assert_array_equal(packing.apply(array), wanted)
    assert packing.shape(array.shape) == wanted.shape


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shifts_of_the_last_axis(count: int) -> None:
    array = np.arange(3 * count).reshape(3, count) + 1
    wanted = np.zeros((3, 2 * count - 1, count), array.dtype)
    for row, distance, place in np.ndindex(*wanted.shape):
        source = place - (distance - count + 1)
        if 0 <= source < count:
            wanted[row, distance, place] = array[row, source]
    np.testing.assert_array_equal(Packing().shifts().apply(array), wanted)
    assert Packing().shifts().shape(array.shape) == wanted.shape


@pytest.mark.parametrize("length", [1, 2, 3, 7, 10])
def test_blocks_of_the_first_axis(length: int) -> None:
    array = np.arange(7 * 3 * 4).reshape(7, 3, 4)
    wanted = [
        array[k, panel, lane]
        for start in range(0, 7, length)
        for panel in range(3)
        for k in range(start, min(start + length, 7))
        for lane in range(4)
    ]
    np.testing.assert_array_equal(Packing().blocks(length).apply(array), wanted)
    assert Packing().blocks(length).shape((7, 3, 4)) == (84,)


def test_steps_follow_one_another_and_survive_as_json() -> None:
    first, second = Packing().pad(2, 4, 5), Packing().reshape(8, 5)
    both = first.then(second)
    np.testing.assert_array_equal(both.apply(ARRAY), second.apply(first.apply(ARRAY)))
    assert Packing.from_json(json.loads(json.dumps(both.to_json()))) == both
    np.testing.assert_array_equal(AS_IT_IS.apply(ARRAY), ARRAY)
    assert AS_IT_IS.apply(np.array(3.0)).shape == ()


@pytest.mark.parametrize(
    "step",
    [
        ("reshape", (7,)), ("reshape", (-1,)), ("reshape", ("30",)), ("reshape", (30.0,)), ("reshape", (True, 30)),
        ("reshape", (1,) * 29 + (30,)), ("pad", (2, 3)), ("pad", (1, 3, 5)), ("pad", (2, 3, 5, 1)),
        ("transpose", (0, 1)), ("transpose", (0, 1, 1)), ("transpose", (0, 1, 3)), ("diagonal", ()), ("blocks", (0,)),
        ("shifts", (1,)), ("blocks", ()), ("take", (0,)), ("__class__", ()),
    ],
)  # fmt: skip
def test_steps_that_make_no_sense(step: tuple[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=step[0]):
        Packing((step,)).shape(ARRAY.shape)
    with pytest.raises(ValueError, match=step[0]):
        Packing((step,)).apply(ARRAY)
