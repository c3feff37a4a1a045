from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from tvm.script import tirx as T

from shave.backends.targets import resolve
from shave.backends.tvm.adapter import tvm
from shave.backends.tvm.build import build
from shave.backends.tvm.schedules import Argument
from shave.backends.tvm.tune import meter as meter_module
from shave.backends.tvm.tune.meter import Meter
from shave.ir.errors import CompileError


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def add(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32"), c: T.Buffer((64,), "float32")) -> None:  # type: ignore[valid-type]
    with T.sblock("root"):
        for i in range(64):
            c[i] = a[i] + b[i]  # type: ignore[index]


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def same(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32"), c: T.Buffer((64,), "float32")) -> None:  # type: ignore[valid-type]
    with T.sblock("root"):
        for i in range(64):
            c[63 - i] = b[63 - i] + a[63 - i]  # type: ignore[index]


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def wrong(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32"), c: T.Buffer((64,), "float32")) -> None:  # type: ignore[valid-type]
    with T.sblock("root"):
        for i in range(63):
            c[i] = a[i] + b[i]  # type: ignore[index]


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def crash(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32"), c: T.Buffer((64,), "float32")) -> None:  # type: ignore[valid-type]
    with T.sblock("root"):
        for i in range(64):
            c[i * 1000000000000] = a[i] + b[i]  # type: ignore[index]


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def endless(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32"), c: T.Buffer((64,), "float32")) -> None:  # type: ignore[valid-type]
    with T.sblock("root"):
        for i in range(1 << 60):
            c[i % 64] = c[(i + 1) % 64] * a[i % 64] + b[i % 64]  # type: ignore[index]


ARGUMENTS = [Argument((64,), False), Argument((64,), True), Argument((64,), False)]


@pytest.fixture(scope="module")
def library() -> bytes:
    functions: dict[Any, Any] = {
        tvm.ir.GlobalVar(f.__name__): function
        for f, function in ((_named(name), globals()[name]) for name in ("add", "same", "wrong", "crash", "endless"))
    }
    return build(tvm.IRModule(functions), resolve("cpu"))


def _named(name: str) -> Any:
    def function() -> None: ...

    function.__name__ = name
    return function


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    meter = Meter(threads=1, weight_bytes=1 << 16)
    yield meter
    meter.stop()


def test_each_function_is_timed_in_each_round(meter: Meter, library: bytes) -> None:
    timings = meter.time(library, ["add", "same"], ARGUMENTS, seconds=1e-3)
    first, second = [len(timing.samples) for timing in timings]
    assert first == second >= meter_module._FEWEST_ROUNDS
    assert all(0 < timing.minimum < 1 for timing in timings)


def test_other_results_are_refused(meter: Meter, library: bytes) -> None:
    with pytest.raises(CompileError, match="1 of 64 results differ from those of the default schedule"):
        meter.time(library, ["add", "wrong"], ARGUMENTS, seconds=1e-3)


def test_a_crash_costs_one_measurement(meter: Meter, library: bytes) -> None:
    with pytest.raises(CompileError, match=r"the kernel under test crashed on crash \(SIG(SEGV|BUS)\)"):
        meter.time(library, ["add", "crash"], ARGUMENTS, seconds=1e-3)
    assert len(meter.time(library, ["add"], ARGUMENTS, seconds=1e-3)) == 1


def test_what_never_ends_is_ended(meter: Meter, library: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module, "_LONGEST", 2.0)
    with pytest.raises(CompileError, match="endless took longer than 2 s"):
        meter.time(library, ["add", "endless"], ARGUMENTS, seconds=1e-3)


def test_copies_of_the_weights_do_not_overlap() -> None:
    stage = meter_module._Stage([[[2, 3], False], [[5, 5], True], [[17], True], [[2, 5], False]], 4096)
    ranges = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + 4 * size)
        for tensors in stage._sets
        for tensor, size in ((tensors[1], 25), (tensors[2], 17))
    )
    assert len(stage._sets) == 4096 // 4 // (32 + 32)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert all(start % 64 == 0 for start, _ in ranges)
    assert len({tensors[0].data_ptr() for tensors in stage._sets}) == 1
