"""The code of a static program: kernels that take plain pointers, and ``run``, which calls them in order.

TVM's calling convention describes each argument of each call by a tensor object, and every kernel checks all of them
again. Where a :class:`shave.backends.plan.Plan` fixes all sizes, a kernel only needs to know where its tensors start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir import PointerType, PrimType

from shave.backends.plan import Plan
from shave.backends.tvm.adapter import IRBuilder, PrimFunc, T, tirx, tvm
from shave.backends.tvm.plan import plan

RUN = "run"
"""``run(slots, first, last)``: call the steps from ``first`` to before ``last``.

``slots`` is the address of the arguments of all steps of the plan, one pointer each, in order. The result is 0, or
the number of the step that failed, counted from 1; its error is the pending one of this thread.
"""

_PACKED = "__tvm_ffi_"  # in front of names that TVM's loader finds
_AS_IT_IS = {"calling_conv": 1}  # keeps TVM from wrapping a function into its own calling convention
_INT = 1  # type code of an integer result


def static(module: Any) -> tuple[Any, Plan] | None:
    """Turn a lowered module into one without ``main``, and the plan that replaces it.

    Args:
        module: An ``IRModule`` whose ``main`` calls its PrimFuncs.

    Returns:
        The PrimFuncs that the plan names and ``run``, all without TVM's calling convention; None if ``main`` is not
        static.
    """
    copies: dict[str, PrimFunc] = {}

    def copy(size: int) -> str:
        name = f"copy_{size}"
        copies.setdefault(name, _copy(size))
        return name

    made = plan(module, copy)
    if made is None:
        return None
    kernels = {v.name_hint: f for v, f in module.functions.items() if isinstance(f, PrimFunc)}
    called = {step.kernel for step in made.steps}
    functions = {name: with_pointers(f) for name, f in {**kernels, **copies}.items() if name in called}
    functions[_PACKED + RUN] = _run(made)
    return tvm.IRModule({tvm.ir.GlobalVar(name): f for name, f in functions.items()}, attrs=module.attrs), made


def with_pointers(function: PrimFunc) -> PrimFunc:
    """A function of tensors of known sizes as a C function of pointers that returns 0, or another number on failure.

    Its tensors may start anywhere: it assumes the alignment of their elements only.
    """
    buffers = list(function.params)
    pointers = [tirx.Var(buffer.name, PointerType(PrimType(str(buffer.ty.dtype.dtype)))) for buffer in buffers]
    views = [tirx.DeclBuffer(buffer, data=pointer) for buffer, pointer in zip(buffers, pointers, strict=True)]
    # What TVM's own loops leave open.
    starts = [b.ty.elem_offset for b in buffers if isinstance(b.ty.elem_offset, tirx.Var)]
    binds = [tirx.Bind(start, tirx.const(0, str(start.ty.dtype))) for start in starts]
    body = tirx.SeqStmt([*binds, *views, function.body])
    # Where temporary memory of the function comes from.
    for key, value in (("device_type", 1), ("device_id", 0)):
        body = tirx.AttrStmt(tirx.const(0, "int32"), key, value, body)
    return PrimFunc(pointers, body, PrimType("int32"), function.attrs).with_attrs(_AS_IT_IS)


def _copy(size: int) -> PrimFunc:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("copy")
        source = T.match_buffer(T.arg("source", T.handle()), (size,), "uint8", layout=None)
        target = T.match_buffer(T.arg("target", T.handle()), (size,), "uint8", layout=None)
        with T.sblock("root"):
            T.reads()
            T.writes()
            T.evaluate(T.call_extern("handle", "memcpy", target.data, source.data, T.uint64(size)))
    return builder.get().without_attr("global_symbol")


def _run(made: Plan) -> PrimFunc:
    total = sum(len(step.arguments) for step in made.steps)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(RUN)
        T.arg("self", T.handle())
        arguments = T.arg("arguments", T.handle())
        T.arg("count", T.int32())
        result = T.arg("result", T.handle())
        # Arguments and result are pairs of a type code and a value.
        given = T.decl_buffer((6,), "int64", data=arguments)
        slots = T.decl_buffer((total,), "uint64", data=T.reinterpret("handle", given[1]))
        outcome = T.decl_buffer((2,), "int64", data=result)
        T.buffer_store(outcome, T.int64(_INT), [0])
        T.buffer_store(outcome, T.int64(0), [1])
        at = 0
        for number, step in enumerate(made.steps):
            taken = range(at, at + len(step.arguments))
            at = taken.stop
            wanted = tirx.all(outcome[1] == 0, given[3] <= number, number < given[5])
            _step(step.kernel, [slots[k] for k in taken], wanted, outcome, number + 1)
    function = builder.get()
    return PrimFunc(function.params, function.body, PrimType("int32"), function.attrs).with_attrs(_AS_IT_IS)


def _step(kernel: str, arguments: Sequence[Any], wanted: Any, outcome: Any, number: int) -> None:
    with T.If(wanted), T.Then():
        call = T.call_extern("int32", kernel, *[T.reinterpret("handle", argument) for argument in arguments])
        with T.If(call != 0), T.Then():
            T.buffer_store(outcome, T.int64(number), [1])
