from __future__ import annotations

import sys
import threading

import ml_dtypes
import numpy as np
import pytest

from shave.backends.tvm import vm

DTYPES = ["float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool", ml_dtypes.bfloat16]
DTYPES += [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize(
    "name",
    [
        "ffi.Module.load_from_file.so",
        "runtime.TVMTensorCreateView",
        "runtime.config_threadpool",
        "runtime.NumThreads",
        "vm.builtin.alloc_storage",
    ],
)
def test_what_is_taken_from_tvm_is_there(name: str) -> None:
    """The contract with the pinned release: each of these has moved between releases before."""
    assert vm.ffi().get_global_func(name, allow_missing=True) is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (4, 5)])
def test_arrays_survive_the_way_there_and_back(dtype: type, shape: tuple[int, ...]) -> None:
    array = vm.aligned(np.arange(20)[: int(np.prod(shape))].reshape(shape).astype(dtype))
    tensor = vm.to_tensor(array)
    assert str(tensor.dtype) == array.dtype.name
    assert tuple(tensor.shape) == shape
    back = vm.to_array(tensor)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    if array.size:
        assert back.ctypes.data == array.ctypes.data


def test_arrays_keep_their_memory_alive() -> None:
    back = vm.to_array(vm.to_tensor(vm.aligned(np.full((1000,), 7.0))))
    noise = [np.zeros(1000) for _ in range(100)]
    assert len(noise) == 100
    np.testing.assert_array_equal(back, 7.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[1:],
        lambda x: x[::2],
        lambda x: x.reshape(8, 8).T,
        lambda x: x.astype(">f4"),
    ],
)
def test_what_kernels_cannot_read_is_copied(make) -> None:  # type: ignore[no-untyped-def]
    odd = make(vm.aligned(np.arange(64, dtype=np.float32)))
    copy = vm.aligned(odd)
    assert copy is not odd
    assert copy.ctypes.data % 64 == 0
    assert copy.flags.c_contiguous
    assert copy.dtype == np.float32
    np.testing.assert_array_equal(copy, odd)
    assert vm.aligned(copy) is copy


def test_torch_is_hidden_from_one_thread_only() -> None:
    hider = vm._TorchHider()
    with pytest.raises(ModuleNotFoundError):
        hider.find_spec("torch")
    assert hider.find_spec("numpy") is None
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(hider.find_spec("torch")))
    thread.start()
    thread.join()
    assert found == [None]
    assert not any(isinstance(finder, vm._TorchHider) for finder in sys.meta_path)


def test_empty_arrays_have_the_strides_of_their_shape() -> None:
    for shape in ((0, 3), (2, 0), (0,)):
        array = vm.aligned(np.empty(shape, np.float32))
        assert array.shape == shape
        assert array.strides == tuple(4 * max(1, int(np.prod(shape[axis + 1 :]))) for axis in range(len(shape)))
