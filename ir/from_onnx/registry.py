"""The table of ONNX operators: each row is one small torch function.

    @onnx_op("Relu")
    def relu(node: OnnxNode, x: Tensor) -> Value:
        return torch.relu(x)

The annotations of the parameters say what the function wants. ``Tensor`` (also ``Tensor | None`` and ``*xs: Tensor``):
the interpreter hands over a tensor, host values made into weights or constants. ``Value``: it hands over what there is,
so a shape or an axis stays a NumPy array. An input that the node omits is ``None``. The result is one value or a
tuple of them; host values (NumPy arrays) may be returned.

If all inputs are host values without symbols, the interpreter runs the function eagerly and keeps the result on the
host, so constants fold without a second implementation. Operators that must survive folding (quantization, random
numbers) are registered as ``opaque``. Shape arithmetic with symbolic dimensions is in `symbolic`, in NumPy.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from shave.ir.from_onnx.graph import AttributeRef, Graph, Node
from shave.ir.from_onnx.values import Value, as_tensor, is_symbolic

if TYPE_CHECKING:
    from shave.ir.from_onnx.interpreter import Scope

OpFunction: TypeAlias = Callable[..., Any]
_F = TypeVar("_F", bound=OpFunction)


@dataclass(frozen=True, eq=False)
class Op:
    """One row: the function for an operator from a version on."""

    function: OpFunction
    since: int
    opaque: bool
    # Per parameter after the node: whether it wants a tensor; the last holds for all further inputs if `variadic`.
    wants_tensor: tuple[bool, ...]
    variadic: bool

    def __call__(self, node: OnnxNode, inputs: Sequence[Value | None]) -> list[Value | None]:
        """Call the function with inputs of the kinds it asks for; always gives a list."""
        count = len(self.wants_tensor)
        arguments: list[Value | None] = []
        for index, value in enumerate(inputs):
            if index >= count and not self.variadic:
                raise ValueError(f"has {len(inputs)} inputs, at most {count} are allowed")
            wanted = self.wants_tensor[min(index, count - 1)]
            arguments.append(as_tensor(value) if wanted and value is not None else value)
        return as_results(self.function(node, *arguments))


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """A node as its operator function sees it.

    Attributes:
        name: the node's name, with those of the enclosing functions before it.
        opset: the version of the node's domain.
        scope: where the node stands, for running subgraphs.
    """

    name: str
    spec: Node
    opset: int
    scope: Scope

    @property
    def op_type(self) -> str:
        """The operator."""
        return self.spec.op_type

    @property
    def domain(self) -> str:
        """The operator's domain, empty for ONNX's own."""
        return self.spec.domain

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs; an empty one is not wanted."""
        return self.spec.outputs

    @property
    def n_outputs(self) -> int:
        """How many outputs the node lists."""
        return len(self.spec.outputs)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a Python value, a NumPy array or a `Graph`; ``default`` if it is not given."""
        value = self.spec.attributes.get(name)
        if isinstance(value, AttributeRef):
            value = self.scope.attributes.get(value.name)
        return default if value is None else value

    def run_subgraph(self, graph: Graph, inputs: Sequence[Value]) -> list[Value]:
        """Run a subgraph of this node on values for its inputs; the names around the node are visible to it."""
        return self.scope.run_subgraph(graph, inputs, self.name)

    def run_body(self, inputs: Sequence[Value | None]) -> list[Value | None]:
        """Run the operators by which ONNX defines this one."""
        inputs = list(inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        return self.scope.run_body(self, inputs)


_OPS: dict[tuple[str, str], list[Op]] = {}
_SYMBOLIC: dict[str, tuple[OpFunction, bool]] = {}

# Shapes are short; a longer host value beside a symbol is data, which is better traced.
_LONGEST_SHAPE = 64


def onnx_op(*names: str, since: int = 1, domain: str = "", opaque: bool = False) -> Callable[[_F], _F]:
    """Register a function for operators, from version ``since`` of ``domain`` on.

    The highest ``since`` that a model's version reaches wins. ``opaque`` keeps the operator from being evaluated while
    reading, even if all its inputs are constants.

    Raises:
        ValueError: there is such a row already.
    """

    def register(function: _F) -> _F:
        wants_tensor, variadic = _wishes(function)
        op = Op(function, since, opaque, wants_tensor, variadic)
        for name in names:
            rows = _OPS.setdefault((domain, name), [])
            if any(row.since == since for row in rows):
                raise ValueError(f"operator {domain}::{name} since {since} is registered twice")
            rows.append(op)
            rows.sort(key=lambda row: row.since, reverse=True)
        return function

    return register


def symbolic_op(*names: str, first_only: bool = False) -> Callable[[_F], _F]:
    """Register NumPy arithmetic for an operator whose inputs are all host values, some of them symbolic.

    ``first_only``: it applies if the first input is symbolic and no other is.
    """

    def register(function: _F) -> _F:
        for name in names:
            if name in _SYMBOLIC:
                raise ValueError(f"symbolic operator {name} is registered twice")
            _SYMBOLIC[name] = (function, first_only)
        return function

    return register


def find_op(domain: str, op_type: str, opset: int) -> Op | None:
    """The row for an operator at a version of its domain."""
    return next((row for row in _OPS.get((domain, op_type), ()) if row.since <= opset), None)


def registered_operators(domain: str = "") -> list[str]:
    """Names of all operators of a domain that have a row, in alphabetical order."""
    return sorted(name for where, name in _OPS if where == domain)


def find_symbolic_op(node: OnnxNode, inputs: Sequence[Value | None]) -> OpFunction | None:
    """The shape arithmetic for a node whose inputs are all host values, if it is that: some input is symbolic."""
    symbolic = [is_symbolic(value) for value in inputs]
    if node.domain or not any(symbolic) or node.op_type not in _SYMBOLIC:
        return None
    function, first_only = _SYMBOLIC[node.op_type]
    if first_only and (not symbolic[0] or any(symbolic[1:])):
        return None
    if any(isinstance(value, np.ndarray) and value.size > _LONGEST_SHAPE for value in inputs):
        return None
    return function


def as_results(result: Value | Sequence[Value | None] | None) -> list[Value | None]:
    """What an operator function gave, one value or several, as a list."""
    return list(result) if isinstance(result, (tuple, list)) else [result]  # type: ignore[list-item]


def _wishes(function: OpFunction) -> tuple[tuple[bool, ...], bool]:
    hints = typing.get_type_hints(function, {**function.__globals__, "torch": torch})
    _, *parameters = inspect.signature(function).parameters.values()
    wants = tuple(hints[p.name] in (Tensor, Tensor | None) for p in parameters)
    return wants, any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
