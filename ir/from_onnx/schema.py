"""Operators that ONNX itself defines by other operators: their bodies, from the schemas of the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto, defs, helper

from shave.ir.from_onnx.graph import AttributeRef, Function, Graph, Node, parse_attribute, parse_function
from shave.ir.from_onnx.values import Value, onnx_dtype


@cache
def find_schema(domain: str, op_type: str, opset: int) -> Any:
    """The schema of an operator at a version of its domain, or None (the package's type stubs lack half of it)."""
    try:
        return defs.get_schema(op_type, opset, domain)
    except defs.SchemaError:
        return None


def has_body(domain: str, op_type: str, opset: int) -> bool:
    """Whether ONNX defines the operator by others."""
    schema = find_schema(domain, op_type, opset)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def schema_function(node: Node, opset: int, inputs: Sequence[Value | None]) -> Function | None:
    """The body of a node's operator, made for the types of its inputs where it depends on them."""
    schema = find_schema(node.domain, node.op_type, opset)
    if schema is None:
        return None
    if schema.has_function:
        return _with_defaults(schema, _newest(schema, schema.function_opset_versions, opset))
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        version = max(versions or schema.context_dependent_function_opset_versions)
        types = [_type_of(value).SerializeToString() for value in inputs]
        body = FunctionProto()
        body.ParseFromString(
            schema.get_context_dependent_function_with_opset_version(
                version, _to_proto(node).SerializeToString(), types
            )
        )
        return _with_defaults(schema, body)
    return None


def _newest(schema: Any, versions: Sequence[int], opset: int) -> FunctionProto:
    version = max([v for v in versions if v <= opset] or versions)
    body = FunctionProto()
    body.ParseFromString(schema.get_function_with_opset_version(version))
    return body


def _with_defaults(schema: Any, body: FunctionProto) -> Function:
    function = parse_function(body)
    defaults = {
        name: parse_attribute(attribute.default_value, schema.name)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type != AttributeProto.UNDEFINED
    }
    return Function(
        function.name,
        function.inputs,
        function.outputs,
        function.nodes,
        function.opsets,
        {**defaults, **function.defaults},
    )


def _type_of(value: Value | None) -> TypeProto:
    if value is None:
        return TypeProto()
    shape = [size if isinstance(size, int) else None for size in value.shape]
    return helper.make_tensor_type_proto(onnx_dtype(value), shape)


def _to_proto(node: Node) -> NodeProto:
    """The node with its plain attributes, which is what the choice of a body depends on."""
    plain: dict[str, Any] = {
        name: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in node.attributes.items()
        if not isinstance(value, (Graph, AttributeRef))
    }
    return helper.make_node(node.op_type, node.inputs, node.outputs, node.name, domain=node.domain, **plain)
