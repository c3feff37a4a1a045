"""Which function emits which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from shave.ir.ops import op_name

if TYPE_CHECKING:
    from shave.backends.tvm.emit.emitter import Emitter

Emit = Callable[["Emitter", fx.Node], Any]
"""Emits one call: a :class:`~shave.backends.tvm.layout.Value`, a tuple of them for operators with several results, or a
Relax variable in the plain layout, which stands for a value of the node's own shape and dtype."""

_EMITTERS: dict[str, Emit] = {}


def emits(*names: str) -> Callable[[Emit], Emit]:
    """Register an emitter for operators: ``aten.max`` for all overloads, ``aten.max.dim`` for one."""

    def register(emit: Emit) -> Emit:
        for name in names:
            if name in _EMITTERS:
                raise ValueError(f"two emitters for {name}")
            _EMITTERS[name] = emit
        return emit

    return register


def emitter_of(node: fx.Node) -> Emit | None:
    """The emitter of a call; None if its operator has none and must be decomposed."""
    name = op_name(node)
    overload = getattr(node.target, "_overloadname", "")
    return _EMITTERS.get(f"{name}.{overload}") or _EMITTERS.get(name)


def emitted_operators() -> list[str]:
    """Names of all operators with an emitter, sorted."""
    return sorted(_EMITTERS)
