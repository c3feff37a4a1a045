"""Planned programs as the runtime runs them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import shave
from shave.backends.runtime import Artifact, load
from shave.backends.tvm import vm
from shave.backends.tvm.adapter import IRBuilder, T, tirx, tvm, tvm_target
from shave.backends.tvm.executor import Executor
from shave.backends.tvm.pipeline import PIPELINE
from shave.backends.tvm.static import with_pointers
from shave.ir.errors import ArtifactError, SignatureError
from tests.backends.tvm.compiled import host

CHANNELS = 20


class _Residual(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.second = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.head = torch.nn.Linear(CHANNELS, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.relu(x + self.second(x))
        return self.head(x.mean((2, 3))), x


def _compiled(seed: int, *, dynamic: bool = False) -> tuple[torch.nn.Module, Artifact]:
    module = _Residual(seed).eval()
    dims = {"x": {0: "batch"}} if dynamic else None
    return module, shave.compile(shave.trace(module, (torch.zeros(2, 3, 16, 12),), dynamic_shapes=dims), threads=1)


@pytest.fixture(scope="module")
def fixed() -> tuple[torch.nn.Module, Artifact]:
    return _compiled(0)


@pytest.fixture(scope="module")
def dynamic() -> tuple[torch.nn.Module, Artifact]:
    return _compiled(1, dynamic=True)


def _check(pair: tuple[torch.nn.Module, Artifact], x: np.ndarray[Any, Any]) -> None:
    module, artifact = pair
    with torch.no_grad():
        expected = module(torch.tensor(x))
    for y, r in zip(artifact(x), expected, strict=True):
        np.testing.assert_allclose(y, r.numpy(), rtol=1e-5, atol=1e-5)


def _input(batch: int = 2, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((batch, 3, 16, 12)).astype(np.float32)


def test_inputs_may_start_anywhere(fixed: tuple[torch.nn.Module, Artifact]) -> None:
    x = _input()
    for shift in (0, 1, 3, 16):
        memory = np.empty(x.size + 16, np.float32)
        moved = memory[shift : shift + x.size].reshape(x.shape)
        moved[...] = x
        _check(fixed, moved)
        moved.flags.writeable = False
        _check(fixed, moved)
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    _check(fixed, unaligned)
    _check(fixed, np.asfortranarray(x))


@pytest.mark.parametrize("batches", [(1,), (3, 1, 8, 1, 3), tuple(range(1, 15))])
def test_every_batch(dynamic: tuple[torch.nn.Module, Artifact], batches: tuple[int, ...]) -> None:
    for batch in batches:
        _check(dynamic, _input(batch, batch))


def test_results_are_aligned_and_own_their_memory(fixed: tuple[torch.nn.Module, Artifact]) -> None:
    _, artifact = fixed
    first = artifact(_input())
    kept = [output.copy() for output in first]
    assert all(output.ctypes.data % 64 == 0 and output.flags.writeable for output in first)
    artifact(_input(seed=1))
    for output, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(output, copy)


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_results_in_arrays_of_the_caller(kind: str, request: pytest.FixtureRequest) -> None:
    _, artifact = request.getfixturevalue(kind)
    x = _input()
    outputs = [np.full_like(y, np.nan) for y in artifact(x)]
    artifact.run_into(outputs, x=x)
    for mine, y in zip(outputs, artifact(x), strict=True):
        np.testing.assert_array_equal(mine, y)
    wrong: list[tuple[list[Any], str]] = [
        (outputs[:1], "1 arrays given for 2 outputs"),
        (outputs[::-1], "has dtype float32 and shape"),
        ([outputs[0].astype(np.float64), outputs[1]], "dtype float64"),
        ([np.empty((5, 2), np.float32).T, outputs[1]], "not contiguous"),
        ([x.reshape(-1)[:10].reshape(2, 5), outputs[1]], "shares memory"),
        ([outputs[1].reshape(-1)[:10].reshape(2, 5), outputs[1]], "shares memory"),
    ]
    for bad, message in wrong:
        with pytest.raises(SignatureError, match=message):
            artifact.run_into(bad, x)


def test_many_threads_call_many_artifacts(
    fixed: tuple[torch.nn.Module, Artifact], dynamic: tuple[torch.nn.Module, Artifact]
) -> None:
    inputs = [_input(seed=seed) for seed in range(4)]
    expected = {(k, seed): pair[1](inputs[seed]) for k, pair in enumerate((fixed, dynamic)) for seed in range(4)}

    def run(number: int) -> None:
        k, seed = number % 2, number % 4
        for y, r in zip((fixed, dynamic)[k][1](inputs[seed]), expected[k, seed], strict=True):
            np.testing.assert_array_equal(y, r)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(400)))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_results(fixed: tuple[torch.nn.Module, Artifact], threads: int) -> None:
    _, artifact = fixed
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("one processor")
    one = artifact(_input())
    artifact.threads = threads
    try:
        for y, r in zip(artifact(_input()), one, strict=True):
            np.testing.assert_array_equal(y, r)
    finally:
        artifact.threads = 1


def test_profile_times_each_step(fixed: tuple[torch.nn.Module, Artifact]) -> None:
    _, artifact = fixed
    plan = artifact.manifest.plan
    assert plan is not None
    times = artifact.profile(_input(), rounds=3)
    assert sum(time.calls for time in times) == len(plan.steps)
    assert {time.name for time in times} == {step.kernel for step in plan.steps}
    assert sum(time.seconds for time in times) > 0


def test_what_each_step_writes(fixed: tuple[torch.nn.Module, Artifact]) -> None:
    engine, x = fixed[1]._engine, _input()
    assert isinstance(engine, Executor)
    steps = list(engine.written([x]))
    assert [name for name, _ in steps] == [name for name, _ in engine.trace([x])]
    (last,) = steps[-1][1]
    results = fixed[1](x)
    np.testing.assert_array_equal(last.view(np.float32), results[1].ravel())
    other = engine.with_code(fixed[1]._contents.library)
    for got, expected in zip(other([x]), results, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert other._rooms is engine._rooms  # workspaces are shared


def test_a_plan_that_does_not_fit_is_refused_before_code_runs(
    fixed: tuple[torch.nn.Module, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses
    import io

    from shave.backends.artifact import pack
    from shave.backends.targets import resolve

    _, artifact = fixed
    contents, plan = artifact._contents, artifact.manifest.plan
    assert plan is not None
    spans = tuple(dataclasses.replace(s, offset=s.offset + (s.memory == "workspace") * 64) for s in plan.spans)
    stream = io.BytesIO()
    pack(
        stream,
        library=bytes(contents.library),
        weights=list(zip(artifact.manifest.weights, contents.weights, strict=True)),
        signature=artifact.signature,
        target=resolve("cpu"),
        plan=dataclasses.replace(plan, spans=spans),
    )
    path = tmp_path / "hostile.shave"
    path.write_bytes(stream.getvalue())

    def forbidden(*_: Any) -> None:
        raise AssertionError("the library was loaded")

    monkeypatch.setattr(vm, "load", forbidden)
    with pytest.raises(ArtifactError, match=r"cannot load .*reaches outside of workspace"):
        load(path)


def test_errors_of_kernels_reach_the_caller(fixed: tuple[torch.nn.Module, Artifact], tmp_path: Path) -> None:
    """A kernel that fails, put in the place of ``run``'s steps: what it says comes out as an exception."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("fails")
        x = T.match_buffer(T.arg("x", T.handle()), (1,), "float32", layout=None)
        with T.sblock("root"):
            T.reads()
            T.writes()
            T.evaluate(tirx.call_packed("shave.there.is.no.such.function", x[0]))
    function = with_pointers(builder.get().without_attr("global_symbol")).with_attr("global_symbol", "fails")
    source = tvm.tirx.build(
        tvm.IRModule({tvm.ir.GlobalVar("fails"): function}), target=tvm_target(host()), pipeline=PIPELINE
    ).inspect_source()
    assert "i32 @fails" in source
    executor: Any = fixed[1]._engine
    run = executor._run

    def failing(*arguments: int) -> int:
        run(*arguments)
        kind = ctypes.CDLL(str(_library("libtvm_ffi.so"))).TVMFFIErrorSetRaisedFromCStr
        kind(b"ValueError", b"no memory for this")
        return 2

    executor._run = failing
    try:
        with pytest.raises(ArtifactError, match=f"kernel {executor._plan.steps[1].kernel} failed: no memory for this"):
            fixed[1](_input())
    finally:
        executor._run = run
    _check(fixed, _input())


def _library(name: str) -> Path:
    import tvm_ffi

    return next(Path(tvm_ffi.__file__).parent.rglob(name))


COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
static long count = 0;
long counted(void) { return count; }
void *malloc(size_t n) {
  static void *(*next)(size_t) = 0;
  if (!next) next = dlsym(RTLD_NEXT, "malloc");
  ++count;
  return next(n);
}
void *mmap(void *a, size_t n, int p, int f, int d, long o) {
  static void *(*next)(void *, size_t, int, int, int, long) = 0;
  if (!next) next = dlsym(RTLD_NEXT, "mmap");
  ++count;
  return next(a, n, p, f, d, o);
}
int posix_memalign(void **to, size_t a, size_t n) {
  static int (*next)(void **, size_t, size_t) = 0;
  if (!next) next = dlsym(RTLD_NEXT, "posix_memalign");
  ++count;
  return next(to, a, n);
}
"""

COUNTED = """
import ctypes, sys
import numpy as np
from shave import load
artifact = load(sys.argv[1], threads=int(sys.argv[2]))
x = np.zeros((2, 3, 16, 12), np.float32)
outputs = list(artifact(x))
counted = ctypes.CDLL(None).counted
for _ in range(20):
    artifact.run_into(outputs, x)
before = counted()
for _ in range(500):
    artifact.run_into(outputs, x)
print(counted() - before)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_is_allocated(fixed: tuple[torch.nn.Module, Artifact], tmp_path: Path, threads: int) -> None:
    """Counted where the C library allocates, over 500 calls: what Python itself does is far below one a call."""
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("one processor")
    (tmp_path / "counter.c").write_text(COUNTER)
    library = tmp_path / "counter.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "counter.c", "-ldl"], check=True)
    fixed[1].save(tmp_path / "fixed.shave")
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(tmp_path / "fixed.shave"), str(threads)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < 100, done.stdout


IDLE = """
import sys, time
import numpy as np
from shave import load
artifact = load(sys.argv[1], threads=2)
x = np.zeros((1, 64, 32, 32), np.float32)
for _ in range(20):
    artifact(x)
before = time.process_time()
time.sleep(1)
print(time.process_time() - before)
"""


def test_nobody_waits_busily_after_a_call(tmp_path: Path) -> None:
    """The workers of a call sleep soon after it, so that the processors are free for others."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    module = torch.nn.Conv2d(64, 64, 3, padding=1).eval()
    artifact = shave.compile(shave.trace(module, (torch.zeros(1, 64, 32, 32),)), passes=None)
    artifact.save(tmp_path / "conv.shave")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TVM", "OMP"))}
    done = subprocess.run(
        [sys.executable, "-c", IDLE, str(tmp_path / "conv.shave")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert float(done.stdout) < 0.03


def test_threads_that_end_leave_workspaces_for_others(dynamic: tuple[torch.nn.Module, Artifact]) -> None:
    _, artifact = dynamic
    engine: Any = artifact._engine
    for _ in range(5):
        thread = threading.Thread(target=artifact, args=(_input(4),))
        thread.start()
        thread.join()
    assert len(engine._rooms[((4, 3, 16, 12),)].idle) == 1


def test_only_the_last_shapes_are_kept(dynamic: tuple[torch.nn.Module, Artifact]) -> None:
    _, artifact = dynamic
    engine: Any = artifact._engine
    for batch in range(1, 20):
        artifact(_input(batch))
    assert len(engine._rooms) <= 8
    assert ((19, 3, 16, 12),) in engine._rooms
