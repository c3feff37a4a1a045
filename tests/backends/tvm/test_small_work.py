from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shave.backends.targets import resolve
from shave.backends.tvm.adapter import IRBuilder, T, tvm
from shave.backends.tvm.small_work import SMALL_NANOSECONDS, nanoseconds, share_only_large_loops
from shave.ir.from_torch import trace
from tests.backends.tvm.compiled import Compiled, worst


def _scaled(rows: int | None, columns: int) -> Any:
    """y = 2 x, a row a task; the number of rows may be symbolic."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        count = T.int64() if rows is None else rows
        x = T.match_buffer(T.arg("x", T.handle()), (count, columns), "float32", layout=None)
        y = T.match_buffer(T.arg("y", T.handle()), (count, columns), "float32", layout=None)
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.parallel(0, count) as i:
                z = T.alloc_buffer((columns,), "float32")
                with T.serial(0, columns) as j:
                    T.buffer_store(z, x[i, j] * T.float32(2), [j])
                with T.serial(0, columns) as j:
                    T.buffer_store(y, z[j], [i, j])
    return share_only_large_loops(tvm.IRModule({"main": builder.get()}), resolve("x86-64-v3"))["main"]


@pytest.mark.parametrize(
    ("rows", "columns", "parallel", "serial"),
    [(4, 100, False, True), (100_000, 100, True, False), (None, 100, True, True), (None, 1 << 20, True, False)],
)
def test_the_estimate_decides(rows: int | None, columns: int, parallel: bool, serial: bool) -> None:
    text = str(_scaled(rows, columns))
    assert ("T.parallel" in text) == parallel
    assert ("in range(" in text.split("for")[1]) == serial


@pytest.mark.parametrize("rows", [1, 3, 5000])
def test_both_branches_compute_the_same(rows: int) -> None:
    function = tvm.compile(_scaled(None, 100), target="llvm")
    x = np.random.default_rng(0).standard_normal((rows, 100)).astype(np.float32)
    y = tvm.runtime.tensor(np.zeros_like(x))
    function(tvm.runtime.tensor(x), y)
    np.testing.assert_array_equal(y.numpy(), 2 * x)


def test_time_grows_with_the_work() -> None:
    times = [nanoseconds(_scaled(4, columns).body) for columns in (10, 100, 1000)]
    assert times[0] > 0
    assert times[1] == pytest.approx(10 * times[0])
    assert times[2] == pytest.approx(100 * times[0])


def test_a_small_network_has_no_parallel_loop_and_a_large_one_has() -> None:
    class Net(torch.nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    for channels, size, shared in ((16, 4, False), (64, 32, True)):
        x = torch.randn(1, channels, size, size)
        compiled = Compiled(trace(Net(channels).eval(), (x,)))
        functions = [compiled.lowered.module[name] for name in compiled.functions()]
        assert any("T.parallel" in str(function) for function in functions) == shared
        assert worst(compiled(x)[0], Net(channels).eval()(x).detach()) < 1e-5


@pytest.mark.parametrize(("inner", "shared"), [(64, False), (1024, True)])
def test_weights_count_by_the_time_to_read_them(inner: int, shared: bool) -> None:
    model = torch.nn.Linear(inner, 512).eval()
    x = torch.randn(1, inner)
    compiled = Compiled(trace(model, (x,)))
    functions = [compiled.lowered.module[name] for name in compiled.functions()]
    # The arithmetic of one row is below the limit for both.
    assert sum(nanoseconds(function.body) for function in functions) < SMALL_NANOSECONDS
    assert any("T.parallel" in str(function) for function in functions) == shared
    assert worst(compiled(x)[0], model(x).detach()) < 1e-5


def test_the_limit_is_above_the_cost_of_waking_a_thread() -> None:
    assert 5_000 <= SMALL_NANOSECONDS <= 50_000
