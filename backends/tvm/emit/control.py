"""Branches: ``torch.cond`` becomes a Relax ``If`` over two functions."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

from shave.backends.tvm.adapter import relax
from shave.backends.tvm.emit.emitter import Emitter, Weights, stored_dtype
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.layout import Value
from shave.ir.program import attribute


@emits("cond")
def _cond(emitter: Emitter, node: fx.Node) -> Any:
    predicate, yes, no, operands = (*node.args, ())[:4]
    given = [emitter.plain(n) for n in cast("tuple[fx.Node, ...]", operands) if isinstance(n, fx.Node)]
    calls = []
    for branch in (yes, no):
        module = cast(fx.GraphModule, attribute(emitter.module, str(cast(fx.Node, branch).target)))
        function, weights = _function(emitter, node, module)
        calls.append(relax.Call(function, [*given, *weights]))
    condition = emitter.plain(cast(fx.Node, predicate))
    if condition.ty.ndim:
        condition = emitter.reshape(condition, [])
    chosen = emitter.builder.emit(relax.If(condition, calls[0], calls[1]), name_hint=node.name)
    claimed = node.meta["val"]
    results = []
    for k, value in enumerate(claimed):
        shape, dtype = emitter.sizes.shape(value.shape), stored_dtype(value.dtype)
        results.append(Value(shape, dtype, plain=emitter.builder.emit(relax.TupleGetItem(chosen, k))))
    return tuple(results)


def _function(emitter: Emitter, node: fx.Node, module: fx.GraphModule) -> tuple[Any, list[Any]]:
    """Emit one branch as a private function of its operands and of weights of its own, which come second."""
    inner = Emitter(module, emitter.target, emitter.sizes, emitter.builder, Weights(), emitter.schedules)
    inner.functions, inner.kernels = emitter.functions, emitter.kernels
    with emitter.builder.function(f"{node.name}_branch", attrs={"relax.force_pure": True}):
        inputs, outputs = inner.emit_graph()
        function = emitter.builder.emit_func_output(relax.Tuple(outputs), [*inputs, *inner.weights.variables.values()])
    own = inner.weights
    named = [(f"{function.name_hint}.{name}", array, own.encoded.get(name)) for name, array in own.arrays.items()]
    return function, [emitter.weights.add(*each) for each in named]
