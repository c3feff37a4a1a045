from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from shave.backends.targets import resolve
from shave.backends.tvm import process as process_module
from shave.backends.tvm import worker as worker_module
from shave.backends.tvm.adapter import relax
from shave.backends.tvm.build import Job, build, generate_here, split
from shave.backends.tvm.worker import Worker, Workers
from shave.ir.errors import CompileError
from tests.backends import handmade


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    workers = Workers(2)
    yield workers
    workers.stop()


def _pid(worker: Worker) -> int:
    assert worker._process is not None
    return worker._process.pid


def _build_works(worker: Worker | Workers, module: Any = None) -> None:
    def one_by_one(jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
        assert isinstance(worker, Worker)
        return ((number, worker.generate(job)) for number, job in enumerate(jobs))

    x = np.random.default_rng(0).normal(size=(3, handmade.WIDTH)).astype(np.float32)
    generate = worker.generate if isinstance(worker, Workers) else one_by_one
    library = build(module or handmade.module(), resolve("cpu"), generate)
    np.testing.assert_allclose(handmade.run(library, x), handmade.expected(x), rtol=1e-5, atol=1e-5)


def test_one_process_serves_many_builds_from_many_threads(worker: Worker) -> None:
    worker.start()
    first = _pid(worker)
    modules = [handmade.module() for _ in range(3)]  # TVM's block builder is not for several threads
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(_build_works, [worker] * 3, modules))
    assert _pid(worker) == first


def test_worker_that_died_while_idle_is_replaced(worker: Worker) -> None:
    worker.start()
    os.kill(_pid(worker), signal.SIGKILL)
    assert worker._process is not None
    worker._process.wait()
    _build_works(worker)


def test_workers_build_the_same_as_this_process(workers: Workers) -> None:
    # But for the bytecode: TVM orders the sizes of a dynamic shape as they come.
    kernels = split(handmade.module(), resolve("cpu"))[1:]
    assert len(kernels) == 4
    assert sorted(workers.generate(kernels)) == list(generate_here(kernels))


def test_workers_serve_builds_of_several_threads(workers: Workers) -> None:
    modules = [handmade.module() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(_build_works, [workers] * 3, modules))


def test_all_workers_take_part(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=60)

    def meet(self: Worker, job: Job) -> bytes:
        both.wait()  # passes only when two jobs are under way at once
        return job.name.encode()

    monkeypatch.setattr(Worker, "generate", meet)
    jobs = [Job(name, "", resolve("cpu")) for name in "abcd"]
    assert sorted(workers.generate(jobs)) == [(0, b"a"), (1, b"b"), (2, b"c"), (3, b"d")]


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def dot(a: T.Buffer((16,), "int32"), b: T.Buffer((64,), "int8"), c: T.Buffer((16,), "int32")) -> None:  # type: ignore[valid-type]
    """An instruction that x86-64-v2 lacks."""
    with T.sblock("root"):
        c[T.ramp(0, 1, 16)] = T.call_llvm_pure_intrin(  # type: ignore[index]
            "int32x16",
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
            a[T.ramp(0, 1, 16)],  # type: ignore[index]
            b[T.ramp(0, 1, 64)],  # type: ignore[index]
            b[T.ramp(0, 1, 64)],  # type: ignore[index]
        )


def test_llvm_that_ends_the_process_ends_only_the_worker(workers: Workers) -> None:
    builder = relax.BlockBuilder()
    a, b = (relax.Var(n, relax.TensorType(s, d)) for n, s, d in (("a", (16,), "int32"), ("b", (64,), "int8")))
    with builder.function("main", [a, b]):
        with builder.dataflow():
            call = relax.call_tir(builder.add_func(dot, "dot"), [a, b], out_ty=relax.TensorType((16,), "int32"))
            result = builder.emit_output(call)
        builder.emit_func_output(result)
    with pytest.raises(CompileError, match=r"the code generator crashed on dot \(SIGABRT\): LLVM ERROR: "):
        build(builder.get(), resolve("x86-64-v2"), workers.generate)
    _build_works(workers)


def test_what_tvm_refuses_is_one_line(workers: Workers) -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.exp(x)))  # not legalised
    with pytest.raises(CompileError, match=r"^TVM cannot build the program: .*exp") as caught:
        build(builder.get(), resolve("cpu"), workers.generate)
    assert "\n" not in str(caught.value)
    _build_works(workers)


def _interrupt(_: object) -> bytes:
    raise KeyboardInterrupt


def test_interrupt_while_waiting(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer that was not waited for must not be taken for that of the next build."""
    worker.start()
    first = _pid(worker)
    job = split(handmade.module(negate=True), resolve("cpu"))[0]
    with monkeypatch.context() as patch:
        patch.setattr(process_module, "_receive", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            worker.generate(job)
    _build_works(worker)
    assert _pid(worker) != first


def test_interrupted_build_does_not_wait_for_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(2)
    workers.start()
    try:
        # Workers that never answer.
        stopped = [_pid(worker) for worker in workers._workers]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        jobs = split(handmade.module(), resolve("cpu"))

        def interrupt(futures: object) -> Iterator[Any]:
            while any(worker._lock.locked() is False for worker in workers._workers):
                time.sleep(0.01)
            raise KeyboardInterrupt
            yield

        with monkeypatch.context() as patch:
            patch.setattr(worker_module, "as_completed", interrupt)
            with pytest.raises(KeyboardInterrupt):
                list(workers.generate(jobs))
        _build_works(workers)
        assert not set(stopped) & {_pid(worker) for worker in workers._workers}
    finally:
        workers.stop()
