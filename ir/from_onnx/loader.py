"""Loading ONNX files: everything that can be wrong with a file is found here, before any work starts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from shave.ir.errors import ReadError
from shave.ir.from_onnx.graph import Function, FunctionKey, Graph, Model, Node, in_order, parse_model
from shave.ir.from_onnx.interpreter import one_line
from shave.ir.from_onnx.registry import find_op
from shave.ir.from_onnx.schema import has_body


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Load a file with its external data.

    Raises:
        ReadError: there is no such file, it is not a (whole) ONNX model, or its external data is missing or lies
            outside of its folder.
    """
    file = Path(path)
    if not file.is_file():
        raise ReadError(f"{file}: there is no such file")
    try:
        model = onnx.load(file, load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError, RecursionError) as error:
        raise ReadError(f"{file}: not an ONNX model, or cut off: {error}") from error
    if not model.ir_version or not model.HasField("graph"):
        raise ReadError(f"{file}: not an ONNX model")
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
    except Exception as error:  # the package raises errors of many kinds here, checker errors of its own among them
        raise ReadError(f"{file}: external data cannot be loaded: {one_line(error)}") from error
    return model


def prepare(model: onnx.ModelProto) -> Model:
    """Turn a loaded model into plain data that is fit to be interpreted.

    Nodes that stand before what they need are sorted, and names of weights with NaN or infinity are warned about.

    Raises:
        ReadError: something in it is malformed, or operators are unknown: all of them are listed, with their nodes.
    """
    parsed = parse_model(model)
    if not parsed.opsets:
        raise ReadError("the model does not say which version of the operators it uses (opset_import)")
    unknown = _unknown_operators(parsed)
    if unknown:
        listed = "; ".join(f"{name} (nodes {', '.join(nodes)})" for name, nodes in sorted(unknown.items()))
        raise ReadError(f"unknown operators: {listed}")
    _check_recursion(parsed.functions)
    _warn_not_finite(parsed.graph)
    functions = {key: replace(function, nodes=in_order(function.nodes)) for key, function in parsed.functions.items()}
    return replace(parsed, graph=replace(parsed.graph, nodes=in_order(parsed.graph.nodes)), functions=functions)


def all_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in node.subgraphs():
            yield from all_nodes(graph.nodes)


def _unknown_operators(model: Model) -> dict[str, list[str]]:
    """Operators that are neither in the table nor defined by others, with the names of their nodes."""
    bodies = [(function.name + "/", function.nodes, function.opsets) for function in model.functions.values()]
    unknown: dict[str, list[str]] = {}
    for prefix, nodes, opsets in [("", model.graph.nodes, model.opsets), *bodies]:
        for node in all_nodes(nodes):
            if (node.domain, node.op_type, node.overload) in model.functions:
                continue
            opset = opsets.get(node.domain, model.opsets.get(node.domain, 1))
            if find_op(node.domain, node.op_type, opset) or has_body(node.domain, node.op_type, opset):
                continue
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            unknown.setdefault(name, []).append(prefix + node.name)
    return unknown


def _check_recursion(functions: Mapping[FunctionKey, Function]) -> None:
    """Refuse functions that call themselves: expanding them would not end."""
    done: set[FunctionKey] = set()

    def visit(key: FunctionKey, callers: tuple[FunctionKey, ...]) -> None:
        if key in callers:
            raise ReadError(f"function '{key[1]}' calls itself")
        if key in done:
            return
        for node in all_nodes(functions[key].nodes):
            called = (node.domain, node.op_type, node.overload)
            if called in functions:
                visit(called, (*callers, key))
        done.add(key)

    for key in functions:
        visit(key, ())


def _warn_not_finite(graph: Graph) -> None:
    names = [name for name, array in _all_constants(graph) if not _is_finite(array)]
    if names:
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        warnings.warn(f"weights hold NaN or infinity: {shown}", stacklevel=4)


def _all_constants(graph: Graph) -> Iterator[tuple[str, np.ndarray]]:
    yield from graph.constants.items()
    for node in graph.nodes:
        for inner in node.subgraphs():
            yield from _all_constants(inner)


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype == ml_dtypes.bfloat16:
        array = array.astype(np.float32)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
