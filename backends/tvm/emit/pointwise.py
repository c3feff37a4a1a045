"""How elementwise operators are emitted: type promotion, broadcasting and layout, for any scalar formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as PROMOTION
from torch._prims_common import elementwise_dtypes

from shave.backends.tvm import layout
from shave.backends.tvm.adapter import Expr, te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number, stored_dtype
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.layout import Value
from shave.backends.tvm.sizes import Size

Formula = Callable[..., Any]
"""The operator on scalar expressions: all arguments of the schema, in order; tensors and numbers as expressions of the
computation dtype, everything else as it is."""


def pointwise(
    *names: str, kind: PROMOTION = PROMOTION.DEFAULT, untyped: Sequence[str] = ()
) -> Callable[[Formula], Formula]:
    """Register a scalar formula as the emitter of elementwise operators.

    Args:
        names: The operators.
        kind: torch's rule for the dtype of computation.
        untyped: Parameters that keep their own dtype and have no say in the promotion (conditions, masks).
    """

    def register(formula: Formula) -> Formula:
        def emit(emitter: Emitter, node: fx.Node) -> Value:
            return emit_pointwise(emitter, node, formula, emitter.arguments(node), kind, untyped)

        emits(*names)(emit)
        return formula

    return register


def emit_pointwise(
    emitter: Emitter,
    node: fx.Node,
    formula: Formula,
    arguments: dict[str, Any],
    kind: PROMOTION = PROMOTION.DEFAULT,
    untyped: Sequence[str] = (),
) -> Value:
    """Emit ``formula(*arguments)`` for each element of the node's result."""
    computation = _computation_dtype(node, arguments, kind, untyped)
    tensors = [a for a in arguments.values() if isinstance(a, fx.Node) and _scalar_weight(emitter, a) is None]
    symbols = [a for a in arguments.values() if isinstance(a, Expr)]

    def value_at(loads: dict[fx.Node, Any], scalars: list[Any]) -> Any:
        remaining = list(scalars)
        bound = []
        for name, argument in arguments.items():
            if isinstance(argument, fx.Node):
                known = _scalar_weight(emitter, argument)
                x = loads[argument] if known is None else tirx.const(known, emitter.dtype(argument))
                bound.append(x if name in untyped else scalar.cast(x, computation))
            elif isinstance(argument, Expr):
                bound.append(number(remaining.pop(0), computation))
            elif isinstance(argument, (bool, int, float)) and not isinstance(argument, bool):
                bound.append(argument if name in ("decimals",) else tirx.const(argument, computation))
            elif isinstance(argument, bool):
                bound.append(tirx.const(argument, computation))
            else:
                bound.append(argument)
        return scalar.cast(formula(*bound), emitter.dtype(node))

    return emit_elements(emitter, node, tensors, symbols, value_at)


def emit_elements(
    emitter: Emitter,
    node: fx.Node,
    tensors: Sequence[fx.Node],
    symbols: Sequence[Any],
    value_at: Callable[[dict[fx.Node, Any], list[Any]], Any],
) -> Value:
    """Emit a value whose elements depend on the elements of ``tensors`` at the same (broadcast) place.

    The result is blocked if the operands are, or can be without touching much memory; else plain. ``symbols``, which
    are sizes or variables, reach ``value_at`` as the function's own sizes and tensors.
    """
    tensors = list(dict.fromkeys(tensors))
    shape, dtype = emitter.result(node)
    blocked = _stays_blocked(emitter, tensors, shape)
    operands = [_operand(emitter, t, shape, blocked) for t in tensors]
    lanes = emitter.lanes

    def compute(*inputs: Any, shape: Sequence[Size], symbols: list[Any]) -> Any:
        def element(*index: Any) -> Any:
            loads = {}
            for node_, x, (_, load) in zip(tensors, inputs, operands, strict=True):
                loads[node_] = load(x, index)
            return value_at(loads, list(symbols))

        return te.compute(shape, element, name="value")

    inside = layout.blocked_shape(shape, lanes) if blocked else shape
    variables = [variable for variable, _ in operands]
    variable = emitter.te(node, compute, *variables, shape=inside, symbols=list(symbols))
    return Value(shape, dtype, blocked=variable) if blocked else Value(shape, dtype, plain=variable)


def _computation_dtype(node: fx.Node, arguments: dict[str, Any], kind: PROMOTION, untyped: Sequence[str]) -> str:
    typed = [
        a.meta["val"] if isinstance(a, fx.Node) else a
        for name, a in arguments.items()
        if name not in untyped and isinstance(a, (fx.Node, bool, int, float))
    ]
    computation, _ = elementwise_dtypes(*typed, type_promotion_kind=kind)
    return stored_dtype(computation)


def _scalar_weight(emitter: Emitter, node: fx.Node) -> Any:
    """The number in a weight of rank 0, which becomes an immediate."""
    tensor = emitter.constant(node)
    return None if tensor is None or tensor.dim() else tensor.item()


def _stays_blocked(emitter: Emitter, tensors: Sequence[fx.Node], shape: Sequence[Size]) -> bool:
    """Whether some operand exists blocked alone, and the others follow cheaply."""
    if not layout.can_block(shape) or not any(emitter.value(t).only_blocked for t in tensors):
        return False
    for tensor in tensors:
        have = emitter.shape(tensor)
        if emitter.value(tensor).only_blocked and have[1] != shape[1]:
            return False
    return True


def _operand(
    emitter: Emitter, node: fx.Node, shape: Sequence[Size], blocked: bool
) -> tuple[Any, Callable[[Any, Sequence[Any]], Any]]:
    """The variable to read an operand from, and how to load the element for an index of the result."""
    have = emitter.shape(node)
    # A size of 1 is repeated; torch has made sure that all others are equal to the result's.
    if not blocked:
        return emitter.plain(node), lambda x, index: x(*_broadcast(have, index))
    lanes, channels = emitter.lanes, shape[1]
    aligned = len(have) == len(shape) and have[1] == channels
    if aligned and (emitter.value(node).blocked is not None or any(s != 1 for s in have[2:])):
        inner = (have[0], 0, *have[2:])

        def load_blocked(x: Any, index: Sequence[Any]) -> Any:
            n, c, *spatial, lane = index
            picked = [0 if size == 1 else i for size, i in zip(inner, (n, c, *spatial), strict=True)]
            return x(picked[0], c, *picked[2:], lane)

        return emitter.blocked(node), load_blocked

    def load_plain(x: Any, index: Sequence[Any]) -> Any:
        n, c, *spatial, lane = index
        channel = c * lanes + lane
        if isinstance(channels, int) and channels % lanes and len(have) >= len(shape) - 1 and have[1 - len(shape)] != 1:
            channel = tirx.min(channel, tirx.const(channels - 1, "int64"))
        return x(*_broadcast(have, (n, channel, *spatial)))

    return emitter.plain(node), load_plain


def _broadcast(have: Sequence[Size], index: Sequence[Any]) -> list[Any]:
    """Index into an operand of shape ``have`` for an index into the result."""
    last = list(index)[len(index) - len(have) :]
    return [0 if isinstance(size, int) and size == 1 else i for size, i in zip(have, last, strict=True)]


def is_integral(node: fx.Node) -> bool:
    """Whether a node's tensor holds integers or booleans."""
    dtype: torch.dtype = node.meta["val"].dtype
    return not dtype.is_floating_point and not dtype.is_complex
