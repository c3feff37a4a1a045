"""The structure of an ONNX model as plain data: graphs, nodes, functions, constants as NumPy arrays.

Scoping follows the file format: a graph is a list of nodes that read and write *names*, and a subgraph sees the
names of the graphs around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from shave.ir.errors import ReadError

Attribute: TypeAlias = "int | float | str | list[int] | list[float] | list[str] | np.ndarray | Graph | AttributeRef"
Dim: TypeAlias = "int | str | None"


@dataclass(frozen=True)
class AttributeRef:
    """Stands for an attribute of the enclosing function's call."""

    name: str


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: its name, element type and, where the file states it, its shape."""

    name: str
    dtype: int
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True, eq=False)
class Node:
    """One node; an empty name among the inputs or outputs is an omitted one."""

    name: str
    op_type: str
    domain: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def subgraphs(self) -> Iterator[Graph]:
        """The graphs among the attributes (branches, loop bodies)."""
        return (value for value in self.attributes.values() if isinstance(value, Graph))


@dataclass(frozen=True, eq=False)
class Graph:
    """A main graph or a subgraph; ``inputs`` leaves out those that have an initializer."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Function:
    """A function: its body reads the names in ``inputs`` and the attributes of its call."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    opsets: Mapping[str, int]
    defaults: Mapping[str, Attribute]


def names_read(nodes: Iterable[Node]) -> set[str]:
    """The names that nodes read, in their subgraphs too."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.inputs)
        for graph in node.subgraphs():
            names |= names_read(graph.nodes) | {spec.name for spec in graph.outputs}
    return names


def in_order(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes such that each stands behind those it reads from; left alone if that is so already.

    Raises:
        ReadError: they read from one another in a circle.
    """
    nodes = [_with_ordered_subgraphs(node) for node in nodes]
    producers = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    before = {index: {producers[n] for n in names_read([node]) if n in producers} for index, node in enumerate(nodes)}
    if any(max(earlier, default=-1) >= index for index, earlier in before.items()):
        try:
            return tuple(nodes[index] for index in TopologicalSorter(before).static_order())
        except CycleError as error:
            circle = ", ".join(nodes[index].name for index in error.args[1][1:])
            raise ReadError(f"nodes read from one another in a circle: {circle}") from error
    return tuple(nodes)


def _with_ordered_subgraphs(node: Node) -> Node:
    if not any(node.subgraphs()):
        return node
    ordered = {
        name: replace(value, nodes=in_order(value.nodes)) if isinstance(value, Graph) else value
        for name, value in node.attributes.items()
    }
    return replace(node, attributes=ordered)


FunctionKey: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class Model:
    """A whole file."""

    graph: Graph
    opsets: Mapping[str, int]
    functions: Mapping[FunctionKey, Function]


def parse_model(model: onnx.ModelProto) -> Model:
    """Turn a model whose external data is loaded into plain data.

    Raises:
        ReadError: a tensor, attribute or type in it is malformed or of an unsupported kind.
    """
    return Model(
        graph=parse_graph(model.graph),
        opsets=parse_opsets(model.opset_import),
        functions={(_domain(f.domain), f.name, f.overload): parse_function(f) for f in model.functions},
    )


def parse_opsets(entries: object) -> dict[str, int]:
    """Versions by domain; the default domain is the empty string."""
    return {_domain(entry.domain): entry.version for entry in entries}  # type: ignore[attr-defined]


def parse_graph(graph: onnx.GraphProto) -> Graph:
    """Parse a main graph or a subgraph."""
    constants = {tensor.name: parse_tensor(tensor) for tensor in graph.initializer}
    constants |= {sparse.values.name: parse_sparse_tensor(sparse) for sparse in graph.sparse_initializer}
    return Graph(
        name=graph.name,
        inputs=tuple(_parse_tensor_spec(info) for info in graph.input if info.name not in constants),
        outputs=tuple(_parse_tensor_spec(info) for info in graph.output),
        nodes=_parse_nodes(graph.node),
        constants=constants,
    )


def parse_function(function: onnx.FunctionProto) -> Function:
    """Parse a model-local function or the body of a function operator."""
    return Function(
        name=function.name,
        inputs=tuple(function.input),
        outputs=tuple(function.output),
        nodes=_parse_nodes(function.node),
        opsets=parse_opsets(function.opset_import),
        defaults={a.name: parse_attribute(a, function.name) for a in function.attribute_proto},
    )


def parse_tensor(tensor: onnx.TensorProto) -> np.ndarray:
    """The values of a tensor; strings and sequences are refused."""
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ReadError(f"tensor '{tensor.name}' holds strings, which are not supported")
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ReadError(f"tensor '{tensor.name}' is malformed: {error}") from error


def parse_sparse_tensor(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """A sparse tensor made dense; its indices are linear (rank 1) or one row per value (rank 2)."""
    values, indices = parse_tensor(sparse.values), parse_tensor(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (IndexError, ValueError) as error:
        raise ReadError(f"sparse tensor '{sparse.values.name}' is malformed: {error}") from error
    return dense


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _parse_nodes(nodes: object) -> tuple[Node, ...]:
    return tuple(_parse_node(node, index) for index, node in enumerate(nodes))  # type: ignore[arg-type, var-annotated]


def _parse_node(node: onnx.NodeProto, index: int) -> Node:
    name = node.name or f"{node.op_type}_{index}"
    return Node(
        name=name,
        op_type=node.op_type,
        domain=_domain(node.domain),
        overload=node.overload,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes={attribute.name: parse_attribute(attribute, name) for attribute in node.attribute},
    )


def parse_attribute(attribute: onnx.AttributeProto, owner: str) -> Attribute:
    """Parse one attribute of the node or operator named ``owner``."""
    if attribute.ref_attr_name:
        return AttributeRef(attribute.ref_attr_name)
    kinds = onnx.AttributeProto
    if attribute.type == kinds.TENSOR:
        return parse_tensor(attribute.t)
    if attribute.type == kinds.SPARSE_TENSOR:
        return parse_sparse_tensor(attribute.sparse_tensor)
    if attribute.type == kinds.GRAPH:
        return parse_graph(attribute.g)
    try:
        if attribute.type == kinds.STRING:
            return attribute.s.decode()
        if attribute.type == kinds.STRINGS:
            return [value.decode() for value in attribute.strings]
        if attribute.type in (kinds.INT, kinds.FLOAT, kinds.INTS, kinds.FLOATS):
            value = helper.get_attribute_value(attribute)
            return value if isinstance(value, (int, float)) else list(value)
    except ValueError as error:
        raise ReadError(f"attribute '{attribute.name}' of '{owner}' is malformed: {error}") from error
    raise ReadError(f"attribute '{attribute.name}' of '{owner}' has the unsupported type {attribute.type}")


def _parse_tensor_spec(info: onnx.ValueInfoProto) -> TensorSpec:
    kind = info.type.WhichOneof("value")
    # Inside subgraphs and functions a type may be left out.
    if kind not in (None, "tensor_type"):
        raise ReadError(f"'{info.name}' is a {kind.removesuffix('_type')}, only tensors are supported")
    tensor = info.type.tensor_type
    shape: tuple[Dim, ...] | None = None
    if tensor.HasField("shape"):
        fields = [(dim, dim.WhichOneof("value")) for dim in tensor.shape.dim]
        shape = tuple(
            (getattr(dim, field) or None) if field == "dim_param" else (dim.dim_value if field else None)
            for dim, field in fields
        )
    return TensorSpec(info.name, tensor.elem_type, shape)
