"""How fast this machine can compute and read at best: what kernels and models are measured against.

The figures of the roofline model (S. Williams, A. Waterman, D. Patterson, "Roofline: An Insightful Visual
Performance Model", CACM 52(4), 2009), measured with generated code, as kernels are: multiply-adds between registers,
and sums over buffers that fit into each level of the caches, or into none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shave.backends import host
from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.timing import interleave
from shave.backends.tvm import vm
from shave.backends.tvm.adapter import IRBuilder, PrimFunc, T, tvm, tvm_target
from shave.backends.tvm.kernels.arithmetic import DotOfFour, arithmetic_of, has_integers
from shave.backends.tvm.kernels.base import root, span, tensor
from shave.backends.tvm.kernels.vector_math import local_array

_STEPS = 1 << 18
"""Multiply-adds of each accumulator in one call: some milliseconds."""
_STREAMS = 8
"""Vectors that one step reads: enough additions in flight to hide their latency behind the loads."""
_LARGE_BYTES = (1 << 23, 1 << 25, 1 << 27, 1 << 29)
_SAMPLE_BYTES = 1 << 26
"""What one call reads at least, by going over a small buffer again and again."""


@dataclass(frozen=True)
class Roofline:
    """What the machine reaches on some number of threads.

    Attributes:
        threads: Number of threads.
        macs_per_second: Float32 multiply-adds.
        integer_macs_per_second: Multiply-adds of 8-bit integers, exact.
        bandwidths: (bytes of a buffer, bytes per second of reading it again and again), smallest buffer first; the
            last one is larger than the caches of the cores.
    """

    threads: int
    macs_per_second: float
    integer_macs_per_second: float
    bandwidths: tuple[tuple[int, float], ...]

    def bytes_per_second(self, size: float) -> float:
        """Rate of reading ``size`` bytes again and again: that of the smallest measured buffer that is as large."""
        return next((rate for buffer, rate in self.bandwidths if size <= buffer), self.bandwidths[-1][1])

    def seconds(self, macs: float, size: float, *, integers: bool = False) -> float:
        """Least time for ``macs`` multiply-adds on ``size`` bytes, each of which is read or written once.

        Arithmetic and memory overlap at best, so the longer of the two counts. It is no limit for work that needs fewer
        multiply-adds than it is said to have, such as a convolution by Winograd's method counted as a direct one.
        """
        rate = self.integer_macs_per_second if integers else self.macs_per_second
        return max(macs / rate, size / self.bytes_per_second(size))


def measure(threads: int, *, rounds: int = 7) -> Roofline:
    """Measure this machine; takes some seconds.

    Args:
        threads: Threads to keep busy.
        rounds: Samples of each figure, of which the best counts.

    Raises:
        TargetError: No code can be generated for this machine.
    """
    target = resolve("cpu")
    vm.use_threads(threads)
    peak = _fastest(_multiply_adds(target, threads), rounds)
    accumulators = _accumulators(target)
    caches = [(host.cache_bytes(level) or size) * threads // 2 for level, size in ((1, 1 << 15), (2, 1 << 20))]
    read = _reader(target, threads)
    bandwidths = []
    for size in [*caches, *_LARGE_BYTES]:
        call, read_bytes = read(size)
        bandwidths.append((size, read_bytes / _fastest(call, rounds)))
    macs = threads * accumulators * target.lanes * _STEPS
    rate = integer_rate = macs / peak
    if has_integers(target):
        arithmetic = arithmetic_of("uint8", target)
        # Without a dot product of four, integers take the units of floats as often as they are told to.
        integer_rate = rate * arithmetic.depth / arithmetic.instructions
        if isinstance(arithmetic, DotOfFour):
            integer_rate = arithmetic.depth * macs / _fastest(_dot_products(target, threads, arithmetic), rounds)
    return Roofline(threads, rate, integer_rate, tuple(sorted(bandwidths)))


def _fastest(call: Callable[[], object], rounds: int) -> float:
    return interleave({"": call}, rounds=rounds, warmup=1, min_seconds=0.005)[""].minimum


def _accumulators(target: Target) -> int:
    """As many as the registers hold beside the two factors: more than the latency of the units can ask for."""
    return target.vector_registers - 4


def _compiled(function: PrimFunc, target: Target) -> Callable[..., object]:
    executable = tvm.compile(function, tvm_target(target))
    call: Callable[..., object] = executable[str(function.attrs["global_symbol"])]
    return call


def _multiply_adds(target: Target, threads: int) -> Callable[[], object]:
    """A call in which each thread does ``x = x * a + b`` on registers only; x goes to 1."""
    lanes, count = target.lanes, _accumulators(target)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("multiply_adds")
        T.func_attr({"tirx.noalias": True})
        factors, result = tensor("factors", (2, lanes)), tensor("result", (threads, count, lanes))
        with root(), T.parallel(0, threads) as thread:
            chains = [local_array(lanes, "float32") for _ in range(count)]
            for k, chain in enumerate(chains):
                T.buffer_store(chain, T.broadcast(T.float32(k), lanes), [span(0, lanes)])
            with T.serial(0, _STEPS):
                for chain in chains:
                    value = chain[span(0, lanes)] * factors[0, span(0, lanes)] + factors[1, span(0, lanes)]
                    T.buffer_store(chain, value, [span(0, lanes)])
            for k, chain in enumerate(chains):
                T.buffer_store(result, chain[span(0, lanes)], [thread, k, span(0, lanes)])
    run = _compiled(builder.get(), target)
    factors = _lent(np.full((2, lanes), 0.5, np.float32))
    result = _lent(np.zeros((threads, count, lanes), np.float32))
    return lambda: run(factors, result)


def _dot_products(target: Target, threads: int, arithmetic: DotOfFour) -> Callable[[], object]:
    """The same with the dot product of four: each thread adds products of the same codes to sums in registers."""
    lanes, count = target.lanes, _accumulators(target)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dot_products")
        T.func_attr({"tirx.noalias": True})
        codes, weights = tensor("codes", (4,), arithmetic.inputs), tensor("weights", (4 * lanes,), arithmetic.weights)
        result = tensor("result", (threads, count, lanes), arithmetic.sums)
        with root(), T.parallel(0, threads) as thread:
            totals = [local_array(lanes, arithmetic.sums) for _ in range(count)]
            for total in totals:
                T.buffer_store(total, T.broadcast(T.int32(0), lanes), [span(0, lanes)])
            with T.serial(0, _STEPS):
                for total in totals:
                    step = arithmetic.multiply_add(
                        total[span(0, lanes)], codes[span(0, 4)], weights[span(0, 4 * lanes)]
                    )
                    T.buffer_store(total, step, [span(0, lanes)])
            for k, total in enumerate(totals):
                T.buffer_store(result, total[span(0, lanes)], [thread, k, span(0, lanes)])
    run = _compiled(builder.get(), target)
    left, right = _lent(np.ones(4, np.uint8)), _lent(np.ones(4 * lanes, np.int8))
    result = _lent(np.zeros((threads, count, lanes), np.int32))
    return lambda: run(left, right, result)


def _reader(target: Target, threads: int) -> Callable[[int], tuple[Callable[[], object], int]]:
    """Give a function from the bytes of a buffer to a call that sums it up some times, and the bytes that it reads."""
    lanes, width = target.lanes, target.lanes * _STREAMS
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("read")
        T.func_attr({"tirx.noalias": True})
        steps, times = T.int64(), T.int64()
        source = tensor("source", (threads, steps, width))
        result = tensor("result", (threads, times, width))
        with root(), T.parallel(0, threads) as thread:
            sums = [local_array(lanes, "float32") for _ in range(_STREAMS)]
            for total in sums:
                T.buffer_store(total, T.broadcast(T.float32(0), lanes), [span(0, lanes)])
            with T.serial(0, times) as time:
                with T.serial(0, steps) as step:
                    for k, total in enumerate(sums):
                        value = total[span(0, lanes)] + source[thread, step, span(k * lanes, lanes)]
                        T.buffer_store(total, value, [span(0, lanes)])
                for k, total in enumerate(sums):
                    T.buffer_store(result, total[span(0, lanes)], [thread, time, span(k * lanes, lanes)])
    run = _compiled(builder.get(), target)

    def prepare(size: int) -> tuple[Callable[[], object], int]:
        steps = max(1, size // (threads * width * 4))
        buffer = np.zeros((threads, steps, width), np.float32)
        buffer += 1  # each page is a page of its own, not the system's page of zeros
        times = max(1, _SAMPLE_BYTES // buffer.nbytes)
        source, result = _lent(buffer), _lent(np.zeros((threads, times, width), np.float32))
        return lambda: run(source, result), times * buffer.nbytes

    return prepare


def _lent(array: Any) -> Any:
    return vm.to_tensor(vm.aligned(array))
