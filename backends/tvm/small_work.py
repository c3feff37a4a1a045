"""Loops that threads share only where the work outweighs waking them.

Kernels write their outer loops as parallel ones. Handing such a loop to another thread and waiting for it takes a few
microseconds, which is more than many kernels of small networks take in all. Here the work of each parallel loop is
estimated from its statements, and from the bytes of the weights that it reads from memory; a small one becomes serial,
and one whose number of iterations is only known at run time becomes both, with a test between them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import tvm_ffi

from shave.backends.target import Target
from shave.backends.tvm.adapter import PrimFunc, relax, tirx, tvm
from shave.backends.weights import numpy_dtype

SMALL_NANOSECONDS = 20_000
"""Work of a loop, on one thread, below which sharing it does not pay."""

_ACCESS_NANOSECONDS = 0.12  # one vector read from the nearest cache, with the arithmetic that goes with it
_UNKNOWN = 3  # iterations of a loop that depends on something: mostly the taps of a convolution


def share_only_large_loops(module: Any, target: Target, weights: Collection[Any] = ()) -> Any:
    """Make small parallel loops of all PrimFuncs of a module serial.

    Args:
        module: PrimFuncs, and Relax functions that call them.
        target: Gives the rate at which one thread reads weights.
        weights: Variables of the Relax functions that hold weights.
    """
    constant = _constant_parameters(module, weights)
    updated = {
        variable: share_if_large(function, constant.get(variable, set()), target)
        if isinstance(function, PrimFunc)
        else function
        for variable, function in module.functions.items()
    }
    return tvm.IRModule(updated, attrs=module.attrs)


def _constant_parameters(module: Any, weights: Collection[Any]) -> dict[Any, set[int]]:
    """Which parameters of each PrimFunc some call gives a weight."""
    known = set(weights)
    found: dict[Any, set[int]] = {}

    def visit(call: Any) -> None:
        if isinstance(call.op, tvm.ir.Op) and call.op.name == "relax.call_tir":
            function, arguments = call.args[:2]
            given = {k for k, argument in enumerate(arguments.fields) if argument in known}
            found.setdefault(function, set()).update(given)

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            tvm_ffi.structural_walk(function.body, [(relax.Call, visit)])
    return found


def share_if_large(function: PrimFunc, constant: Collection[int], target: Target) -> PrimFunc:
    """Make the small parallel loops of one function serial.

    Args:
        function: With its loops as a kernel or a schedule wrote them.
        constant: Which of its parameters hold weights.
        target: Gives the rate at which one thread reads weights.
    """
    copied = False
    weights = _bytes_by_buffer(function, constant)

    def decide(loop: Any) -> Any:
        nonlocal copied
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        each = nanoseconds(loop.body)
        reading = _bytes_read(loop.body, weights) / target.memory_gbytes
        serial = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)
        if isinstance(loop.extent, tirx.IntImm):
            return serial if max(int(loop.extent) * each, reading) < SMALL_NANOSECONDS else loop
        if reading >= SMALL_NANOSECONDS:
            return loop
        most = int(SMALL_NANOSECONDS / max(each, _ACCESS_NANOSECONDS))
        if most < _smallest(loop.extent):
            return loop
        copied = True
        return tirx.IfThenElse(loop.extent <= most, serial, loop)

    body = tvm_ffi.structural_map(function.body, [(tirx.For, decide)])
    if body.same_as(function.body):
        return function
    function = function.with_body(body)
    if not copied:
        return function
    name = tvm.ir.GlobalVar("main")
    return tirx.transform.ConvertSSA()(tvm.IRModule({name: function}))[name]


def _bytes_by_buffer(function: PrimFunc, positions: Collection[int]) -> Mapping[Any, int]:
    """Bytes of some parameters, by every buffer that is a view of one."""
    sizes = {}
    for position in positions:
        parameter = function.params[position]
        width = numpy_dtype(str(parameter.ty.dtype.dtype)).itemsize
        shape = list(parameter.ty.shape)
        if all(isinstance(size, tirx.IntImm) for size in shape):  # others are known at run time, like what is read
            sizes[parameter] = prod(map(int, shape)) * width

    def declare(statement: Any) -> None:
        def view(of: Any) -> None:
            if of in sizes:
                sizes[statement.buffer] = sizes[of]

        tvm_ffi.structural_walk(statement.data, [(tvm.ir.Var, view)])

    tvm_ffi.structural_walk(function.body, [(tirx.DeclBuffer, declare)])
    return sizes


def _bytes_read(statement: Any, sizes: Mapping[Any, int]) -> int:
    """Bytes of the buffers of known size that a statement loads from."""
    met: dict[int, int] = {}

    def visit(load: Any) -> None:
        if load.source in sizes:
            met[load.source] = sizes[load.source]

    tvm_ffi.structural_walk(statement, [(tvm.ir.TensorLoad, visit)])
    return sum(met.values())


def nanoseconds(statement: Any) -> float:
    """A rough guess at the time of a statement on one thread."""
    if isinstance(statement, tirx.SeqStmt):
        return sum(map(nanoseconds, statement.seq))
    if isinstance(statement, tirx.For):
        count = int(statement.extent) if isinstance(statement.extent, tirx.IntImm) else _UNKNOWN
        if statement.kind == tirx.ForKind.VECTORIZED:
            count = 1
        return count * nanoseconds(statement.body)
    if isinstance(statement, tirx.IfThenElse):
        branches = [b for b in (statement.then_case, statement.else_case) if b is not None]
        return max(map(nanoseconds, branches))
    if isinstance(statement, tirx.AttrStmt):
        return nanoseconds(statement.body)
    if isinstance(statement, tvm.s_tir.SBlockRealize):
        return nanoseconds(statement.block.body)
    accesses: list[None] = []
    tvm_ffi.structural_walk(statement, [(tvm.ir.TensorLoad, lambda _: accesses.append(None))])
    return len(accesses) * _ACCESS_NANOSECONDS


def _smallest(extent: Any) -> int:
    """A number of iterations where every unknown size is 1; a large one if that cannot be told."""
    if isinstance(extent, tirx.IntImm):
        return int(extent)
    if isinstance(extent, tirx.Mul):
        return _smallest(extent.a) * _smallest(extent.b)
    return 1
