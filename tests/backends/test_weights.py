from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from shave.backends.container import ALIGNMENT
from shave.backends.weights import decode, encode, split
from shave.ir.errors import ArtifactError, UnsupportedError

RNG = np.random.default_rng(1)
WEIGHTS: list[tuple[str, Any]] = [
    ("odd", RNG.normal(size=3).astype(np.float32)),
    ("matrix", RNG.normal(size=(16, 8)).astype(np.float32)),
    ("scalar", np.array(7, np.int64)),
    ("empty", np.zeros((0, 3), np.float64)),
    ("half", RNG.normal(size=(5, 7)).astype(np.float16)),
    ("flags", np.array([True, False, True])),
    ("bytes", RNG.integers(-128, 128, (64, 3)).astype(np.int8)),
    ("transposed", RNG.normal(size=(4, 6)).astype(np.float32).T),
    ("reversed", np.arange(5, dtype=">i4")),
]
NARROW = [
    ("brain", RNG.normal(size=(3, 3)).astype(ml_dtypes.bfloat16)),
    ("e4m3", RNG.normal(size=9).astype(ml_dtypes.float8_e4m3fn)),
    ("e5m2", RNG.normal(size=9).astype(ml_dtypes.float8_e5m2)),
]


def _encoded(weights: list[tuple[str, Any]]) -> bytearray:
    return bytearray(b"".join(encode(weights)))


def test_round_trip_keeps_values_shapes_and_dtypes() -> None:
    views = decode(memoryview(_encoded(WEIGHTS + NARROW)))
    assert len(views) == len(WEIGHTS + NARROW)
    for name, array in WEIGHTS + NARROW:
        assert views[name].dtype == array.dtype.newbyteorder("=")
        assert views[name].shape == array.shape
        assert views[name].tobytes() == np.ascontiguousarray(array, views[name].dtype).tobytes()


def test_the_safetensors_library_reads_it() -> None:
    loaded = safetensors.numpy.load(bytes(_encoded(WEIGHTS)))
    assert loaded.keys() == {name for name, _ in WEIGHTS}
    for name, array in WEIGHTS:
        np.testing.assert_array_equal(loaded[name], array)


def test_views_share_the_memory_of_the_file() -> None:
    content = _encoded(WEIGHTS)
    view = decode(memoryview(content))["matrix"]
    view[0, 0] = 42
    assert np.float32(42).tobytes() in bytes(content)


def test_tensors_of_full_lines_are_aligned() -> None:
    content = np.frombuffer(_encoded(WEIGHTS), np.uint8)
    for view in decode(memoryview(content)).values():
        if view.nbytes and view.nbytes % ALIGNMENT == 0:
            assert (view.ctypes.data - content.ctypes.data) % ALIGNMENT == 0


def test_without_weights() -> None:
    assert decode(memoryview(_encoded([]))) == {}


def test_dtype_without_a_place() -> None:
    with pytest.raises(UnsupportedError, match="'w' has dtype complex64"):
        list(encode([("w", np.zeros(2, np.complex64))]))


def _file(header: Any, data: bytes = b"") -> memoryview:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(bytearray(len(text).to_bytes(8, "little") + text + data))


def _entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        memoryview(bytearray(b"")),
        memoryview(bytearray(b"\0\0\0")),
        memoryview(bytearray((1 << 40).to_bytes(8, "little"))),
        _file(b"not json"),
        _file(b"\xff\xfe"),
        _file(b"[" * 100_000),
        _file([1, 2]),
        _file({"w": 3}),
        _file(_entry(dtype="F31"), bytes(8)),
        _file(_entry(dtype=["F32"]), bytes(8)),
        _file(_entry(shape=[-2]), bytes(8)),
        _file(_entry(shape=["2"]), bytes(8)),
        _file(_entry(shape=[3]), bytes(8)),
        _file(_entry(data_offsets=[0, 9]), bytes(9)),
        _file(_entry(data_offsets=[4, 12]), bytes(12)),
        _file(_entry(data_offsets=[0]), bytes(8)),
        _file(_entry(data_offsets=[0, 1 << 60], shape=[1 << 58]), bytes(8)),
        _file(_entry(), bytes(4)),
        _file(_entry(), bytes(12)),
        _file({**_entry(), "v": _entry()["w"]}, bytes(16)),
    ],
)
def test_broken_files_are_refused(content: memoryview) -> None:
    with pytest.raises(ArtifactError, match="safetensors"):
        decode(content)


def test_small_tensors_and_integers_close_to_zero_are_deflated() -> None:
    close = np.rint(RNG.normal(size=(99, 110)) * 20)
    kept = [
        ("floats", np.zeros(5000, np.float32)),
        ("bytes", RNG.integers(-128, 128, 8000).astype(np.int8)),
        ("long to inflate", np.zeros(1 << 19, np.int8)),
    ]
    small = [("few", RNG.normal(size=100).astype(np.float32)), ("empty", np.zeros((0, 3), np.float32))]
    small += [(dtype, close.astype(dtype)) for dtype in ("int8", "int16", "int32")]
    found, others = split([*kept, *small])
    assert [name for name, _ in found] == [name for name, _ in small]
    assert [name for name, _ in others] == [name for name, _ in kept]
