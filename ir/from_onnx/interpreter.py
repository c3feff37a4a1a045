"""Running an ONNX graph node by node, on traced tensors and host values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.fx.traceback import annotate

from shave.ir.errors import ReadError
from shave.ir.from_onnx.graph import Attribute, Function, FunctionKey, Graph, Node
from shave.ir.from_onnx.registry import OnnxNode, Op, as_results, find_op, find_symbolic_op
from shave.ir.from_onnx.schema import schema_function
from shave.ir.from_onnx.values import Value, concrete, is_host, is_symbolic, to_numpy
from shave.ir.names import ONNX

ONNX_OP = "onnx_op"
"""Key in ``node.meta["custom"]`` that holds the ONNX operator a node came from."""


@dataclass(eq=False)
class Scope:
    """The names visible at a place in the model, and how to run nodes there.

    Attributes:
        opsets: version by domain.
        functions: the model's own functions.
        values: what the names of this graph stand for.
        attributes: the attributes of the function call this scope is the body of.
        parent: the graph around a subgraph.
        prefix: names of the nodes whose bodies this scope is within.
    """

    opsets: Mapping[str, int]
    functions: Mapping[FunctionKey, Function]
    values: dict[str, Value | None] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    parent: Scope | None = None
    prefix: str = ""

    def lookup(self, name: str) -> Value | None:
        """What a name stands for, here or in the graphs around; an empty name is an omitted input."""
        if not name:
            return None
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.parent
        raise ReadError(f"'{name}' is used but nothing computes it")

    def run(self, nodes: Iterable[Node]) -> None:
        """Run nodes in order, entering their results under their outputs' names."""
        for node in nodes:
            results = self._run_node(node)
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    self.values[name] = value

    def fold(self, nodes: Iterable[Node]) -> list[Node]:
        """Run the nodes that depend on constants alone and give back the others.

        Opaque operators and calls of the model's own functions stay.
        """
        remaining = []
        for node in nodes:
            op = None if self._own_function(node) else find_op(node.domain, node.op_type, self.opset_of(node))
            if op is not None and not op.opaque and all(not name or name in self.values for name in node.inputs):
                self.run([node])
            else:
                remaining.append(node)
        return remaining

    def opset_of(self, node: Node) -> int:
        """The version of the domain that a node belongs to; 1 where the model does not import it."""
        return self.opsets.get(node.domain, 1)

    def run_subgraph(self, graph: Graph, inputs: Sequence[Value], owner: str) -> list[Value]:
        """Run a subgraph on values for its inputs; names of this scope are visible to it."""
        if len(inputs) != len(graph.inputs):
            raise ReadError(
                f"subgraph '{graph.name}' of '{owner}' takes {len(graph.inputs)} inputs, {len(inputs)} given"
            )
        named = {spec.name: value for spec, value in zip(graph.inputs, inputs, strict=True)}
        values: dict[str, Value | None] = {**graph.constants, **named}
        inner = Scope(self.opsets, self.functions, values, self.attributes, parent=self, prefix=f"{owner}/")
        inner.run(graph.nodes)
        return [inner.output(spec.name) for spec in graph.outputs]

    def output(self, name: str) -> Value:
        """The value of an output of this graph."""
        value = self.lookup(name)
        if value is None:
            raise ReadError("an output has no name")
        return value

    def _run_node(self, node: Node) -> list[Value | None]:
        name = self.prefix + node.name
        inputs = [self.lookup(input_name) for input_name in node.inputs]
        bound = OnnxNode(name, node, self.opset_of(node), self)
        try:
            with annotate({ONNX: name, ONNX_OP: node.op_type}):
                results = self._dispatch(bound, inputs)
        except ReadError:
            raise
        except Exception as error:
            raise ReadError(f"node '{name}' ({node.op_type}): {one_line(error)}") from error
        if len(results) < len([output for output in node.outputs if output]):
            raise ReadError(
                f"node '{name}' ({node.op_type}) has {len(node.outputs)} outputs, only {len(results)} exist"
            )
        return results

    def _dispatch(self, node: OnnxNode, inputs: list[Value | None]) -> list[Value | None]:
        own = self._own_function(node.spec)
        if own is not None:
            return self._call(own, node, inputs)
        op = find_op(node.domain, node.op_type, node.opset)
        if op is not None:
            return _apply(op, node, inputs)
        return self.run_body(node, inputs)

    def run_body(self, node: OnnxNode, inputs: Sequence[Value | None]) -> list[Value | None]:
        """Run the operators by which ONNX defines the one of a node."""
        body = schema_function(node.spec, node.opset, inputs)
        if body is None:
            raise ReadError(f"node '{node.name}': operator {node.op_type} of version {node.opset} is not supported")
        return self._call(body, node, inputs)

    def _own_function(self, node: Node) -> Function | None:
        return self.functions.get((node.domain, node.op_type, node.overload))

    def _call(self, function: Function, node: OnnxNode, inputs: Sequence[Value | None]) -> list[Value | None]:
        given = {name: node.attr(name) for name in node.spec.attributes}
        omitted = [None] * (len(function.inputs) - len(inputs))
        inner = Scope(
            opsets={**self.opsets, **function.opsets},
            functions=self.functions,
            values=dict(zip(function.inputs, [*inputs, *omitted], strict=True)),
            attributes={**function.defaults, **{name: value for name, value in given.items() if value is not None}},
            prefix=f"{node.name}/",
        )
        inner.run(function.nodes)
        # An output that the caller leaves out need not exist.
        wanted = zip(function.outputs, node.outputs, strict=False)
        return [inner.output(name) if outer else None for name, outer in wanted]


def _apply(op: Op, node: OnnxNode, inputs: Sequence[Value | None]) -> list[Value | None]:
    if op.opaque or not all(is_host(value) for value in inputs):
        return op(node, inputs)
    if not any(is_symbolic(value) for value in inputs):
        with concrete():
            return [to_numpy(value) if isinstance(value, torch.Tensor) else value for value in op(node, inputs)]
    symbolic = find_symbolic_op(node, inputs)
    return as_results(symbolic(node, *inputs)) if symbolic is not None else op(node, inputs)


def one_line(error: Exception) -> str:
    """The first line of an error's message; torch's go on for pages."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
