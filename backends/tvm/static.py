"""The code of a planned program: kernels that take plain pointers, and ``run``, which calls them in order.

TVM's calling convention describes each argument of each call by a tensor object, and every kernel checks all of them
again. Where there is a :class:`shave.backends.plan.Plan`, a kernel only needs to know where its tensors start, and the
sizes that were not known when it was compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir import PointerType, PrimType

from shave.backends.plan import Plan
from shave.backends.tvm.adapter import IRBuilder, PrimFunc, T, tirx, tvm
from shave.backends.tvm.plan import COPY, plan, size_variables

RUN = "run"
"""``run(slots, first, last)``: call the steps from ``first`` to before ``last``.

``slots`` is the address of the arguments of all steps of the plan in order, 8 bytes each: pointers to the spans, then
the sizes. The result is 0, or the number of the step that failed, counted from 1; its error is the pending one of this
thread.
"""

_PACKED = "__tvm_ffi_"  # in front of names that TVM's loader finds
_INT = 1  # type code of an integer result


def static(module: Any) -> tuple[Any, Plan] | None:
    """Turn a lowered module into one without ``main``, and the plan that replaces it.

    Args:
        module: An ``IRModule`` whose ``main`` calls its PrimFuncs.

    Returns:
        The PrimFuncs that the plan names and ``run``, all without TVM's calling convention; None if ``main`` needs the
        virtual machine.
    """
    made = plan(module)
    if made is None:
        return None
    called = {step.kernel for step in made.steps}
    functions = {
        variable.name_hint: with_pointers(function)
        for variable, function in module.functions.items()
        if variable.name_hint in called
    }
    if COPY in called:
        functions[COPY] = _copy()
    functions[_PACKED + RUN] = _run(made)
    return tvm.IRModule({tvm.ir.GlobalVar(name): f for name, f in functions.items()}, attrs=module.attrs), made


def with_pointers(function: PrimFunc) -> PrimFunc:
    """A function of tensors as a C function of pointers and sizes that returns 0, or another number on failure.

    Its tensors may start anywhere: it assumes the alignment of their elements only.
    """
    buffers = [parameter for parameter in function.params if hasattr(parameter.ty, "shape")]
    pointers = [tirx.Var(buffer.name, PointerType(PrimType(str(buffer.ty.dtype.dtype)))) for buffer in buffers]
    views = [tirx.DeclBuffer(buffer, data=pointer) for buffer, pointer in zip(buffers, pointers, strict=True)]
    # What TVM's own loops leave open.
    starts = [b.ty.elem_offset for b in buffers if isinstance(b.ty.elem_offset, tirx.Var)]
    binds = [tirx.Bind(start, tirx.const(0, str(start.ty.dtype))) for start in starts]
    parameters = [*pointers, *size_variables(function)]
    return _as_it_is(parameters, tirx.SeqStmt([*binds, *views, function.body]), function.attrs)


def _as_it_is(parameters: Sequence[Any], body: Any, attributes: Any) -> PrimFunc:
    """A function that TVM does not wrap into its own calling convention."""
    return PrimFunc(list(parameters), body, PrimType("int32"), attributes).with_attrs({"calling_conv": 1})


def _copy() -> PrimFunc:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(COPY)
        source, target, size = (T.arg("source", T.handle()), T.arg("target", T.handle()), T.arg("size", T.int64()))
        T.evaluate(T.call_extern("handle", "memcpy", target, source, size))
    function = builder.get()
    return _as_it_is(function.params, function.body, function.attrs)


def _run(made: Plan) -> PrimFunc:
    total = sum(len(step.spans) + len(step.sizes) for step in made.steps)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(RUN)
        T.arg("self", T.handle())
        arguments = T.arg("arguments", T.handle())
        T.arg("count", T.int32())
        result = T.arg("result", T.handle())
        # Arguments and result are pairs of a type code and a value.
        given = T.decl_buffer((6,), "int64", data=arguments)
        slots = T.decl_buffer((max(1, total),), "int64", data=T.reinterpret("handle", given[1]))
        outcome = T.decl_buffer((2,), "int64", data=result)
        T.buffer_store(outcome, T.int64(_INT), [0])
        T.buffer_store(outcome, T.int64(0), [1])
        at = 0
        for number, step in enumerate(made.steps):
            pointers = [T.reinterpret("handle", slots[at + k]) for k in range(len(step.spans))]
            at += len(pointers)
            sizes = [slots[at + k] for k in range(len(step.sizes))]
            at += len(sizes)
            with T.If(tirx.all(outcome[1] == 0, given[3] <= number, number < given[5])), T.Then():
                call = T.call_extern("int32", step.kernel, *pointers, *sizes)
                with T.If(call != 0), T.Then():
                    T.buffer_store(outcome, T.int64(number + 1), [1])
    function = builder.get()
    return _as_it_is(function.params, function.body, function.attrs)
