"""Tracing the interpreter: an ONNX model becomes an exported program."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from keyword import iskeyword

import numpy as np
import onnx
import torch
from torch import nn
from torch.fx.traceback import preserve_node_meta

from shave.ir.errors import ReadError
from shave.ir.from_onnx.control_flow import UnrollError
from shave.ir.from_onnx.dimensions import InputShapes, relax, specialized, symbol_names
from shave.ir.from_onnx.dimensions import input_shapes as resolve_shapes
from shave.ir.from_onnx.graph import Model, TensorSpec, names_read
from shave.ir.from_onnx.interpreter import ONNX_OP, Scope, one_line
from shave.ir.from_onnx.loader import prepare
from shave.ir.from_onnx.values import as_tensor, to_torch, torch_dtype, weights
from shave.ir.names import ONNX


class Interpreter(nn.Module):
    """A module whose ``forward`` runs the nodes of a model; its weights are the model's initializers.

    Floating-point initializers are parameters, others and the statistics of batch norms are buffers. A dot in a name
    makes a submodule, as in torch.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        folded = Scope(model.opsets, model.functions, dict(model.graph.constants))
        self._nodes = folded.fold(model.graph.nodes)
        self._constants = folded.values
        self._weight_names: dict[int, str] = {}
        used = names_read(self._nodes) | {spec.name for spec in model.graph.outputs}
        statistics = {name for node in self._nodes if node.op_type == "BatchNormalization" for name in node.inputs[3:5]}
        # One array may have several names, as Identity nodes give them.
        arrays: dict[int, np.ndarray] = {}
        names: dict[int, list[str]] = {}
        for name, value in folded.values.items():
            if name in used and isinstance(value, np.ndarray) and value.dtype != object:
                arrays[id(value)] = value
                names.setdefault(id(value), []).append(name)
        for key, array in arrays.items():
            is_statistic = not statistics.isdisjoint(names[key])
            self._weight_names[key] = self._add_weight(names[key][0], to_torch(array), is_statistic)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the graph on its inputs, in order; gives its outputs, in order."""
        graph = self._model.graph
        named = {spec.name: value for spec, value in zip(graph.inputs, inputs, strict=True)}
        scope = Scope(self._model.opsets, self._model.functions, {**self._constants, **named})
        with weights(self._find_weight):
            scope.run(self._nodes)
            return tuple(as_tensor(scope.output(spec.name)) for spec in graph.outputs)

    def _find_weight(self, array: np.ndarray) -> torch.Tensor | None:
        name = self._weight_names.get(id(array))
        if name is None:
            return None
        path, _, leaf = name.rpartition(".")
        weight: torch.Tensor = getattr(self.get_submodule(path), leaf)
        return weight

    def _add_weight(self, name: str, tensor: torch.Tensor, is_statistic: bool) -> str:
        """Register a tensor under its ONNX name, or the nearest one that is free; gives the name taken."""
        parts = name.split(".") if all(name.split(".")) else [name.replace(".", "_")]
        # Generated code reads weights as attributes, so no part may be a word of the language.
        *path, leaf = (part + "_" if iskeyword(part) else part for part in parts)
        module: nn.Module = self
        for part in path:
            child = getattr(module, part, None)
            if child is None:
                child = nn.Module()
                module.add_module(part, child)
            elif not isinstance(child, nn.Module):
                return self._add_weight(name.replace(".", "_"), tensor, is_statistic)
            module = child
        while hasattr(module, leaf):
            leaf += "_"
        if tensor.is_floating_point() and not is_statistic:
            module.register_parameter(leaf, nn.Parameter(tensor))
        else:
            module.register_buffer(leaf, tensor)
        return ".".join([*path, leaf])


def export_onnx(
    model: onnx.ModelProto, *, input_shapes: Mapping[str, Sequence[int | str]] | None = None
) -> torch.export.ExportedProgram:
    """Trace a model whose external data is loaded.

    Args:
        model: Any opset from 7 on; earlier ones as far as their operators mean the same.
        input_shapes: Shapes of inputs, for those that shall differ from what the model declares; a string names a
            dynamic dimension.

    Returns:
        A program whose weights carry the names of the initializers, and whose nodes carry the name and the operator
        of the ONNX node they come from in ``meta["custom"]``.

    Raises:
        ReadError: the model is malformed, uses unknown operators, or cannot be traced; names the node.
    """
    return trace(prepare(model), input_shapes or {})[0]


def trace(
    model: Model, given_shapes: Mapping[str, Sequence[int | str]]
) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """Trace a prepared model; also gives the names of its dynamic dimensions by their symbols.

    A dimension that the model itself ties to one size (by a constant in a Reshape, say) is fixed, with a warning.
    """
    shapes = resolve_shapes(model.graph.inputs, given_shapes)
    types = [_input_type(spec) for spec in model.graph.inputs]
    module = Interpreter(model).eval()
    failure: ReadError | None = None
    for attempt in _attempts(shapes):
        try:
            exported = _export_conditioned(module, attempt, types)
        except UnrollError:
            raise
        except ReadError as error:
            # The first attempt is what the file asks for, so its failure is the one to tell.
            failure = failure or error
            continue
        fixed = dict.fromkeys(shapes.examples.keys() - attempt.examples.keys(), 1) | specialized(exported, attempt)
        if fixed:
            listed = ", ".join(f"{name} = {size}" for name, size in sorted(fixed.items()))
            reason = f" ({failure})" if failure is not None else ""
            warnings.warn(
                f"the model works for one size of dynamic dimensions only; fixed: {listed}{reason}", stacklevel=3
            )
        return exported, symbol_names(exported, attempt)
    assert failure is not None
    raise failure


def _attempts(shapes: InputShapes) -> Iterator[InputShapes]:
    """What the file says, then one or all dynamic dimensions of size one, which such models were mostly traced with."""
    names = list(shapes.examples)
    yield shapes
    for fixed in [[name] for name in names] + ([names] if len(names) > 1 else []):
        yield shapes.fixed(fixed, 1)


def _export_conditioned(
    module: Interpreter, shapes: InputShapes, types: Sequence[torch.dtype], dims: Mapping[str, object] | None = None
) -> torch.export.ExportedProgram:
    """Export for any size, or where the graph has conditions on a dimension, for those that meet them."""
    if dims is None:
        dims = {name: torch.export.Dim(f"d{index}") for index, name in enumerate(shapes.examples)}
    try:
        return _export(module, shapes, dims, types)
    except ReadError as error:
        relaxed = relax(dims, str(error.__cause__))
        if relaxed == dims:
            raise
    return _export_conditioned(module, shapes, types, relaxed)


def _export(
    module: Interpreter, shapes: InputShapes, dims: Mapping[str, object], types: Sequence[torch.dtype]
) -> torch.export.ExportedProgram:
    args = tuple(torch.zeros(shapes.sizes(index), dtype=dtype) for index, dtype in enumerate(types))
    dynamic_shapes = (shapes.dims(dims),) if args else None
    try:
        with preserve_node_meta():
            exported = torch.export.export(module, args, dynamic_shapes=dynamic_shapes, strict=False)
    except ReadError:
        raise
    except Exception as error:  # torch.export raises errors of many kinds
        raise ReadError(f"the model cannot be traced: {one_line(error)}") from error
    for graph_module in exported.graph_module.modules():
        if isinstance(graph_module, torch.fx.GraphModule):
            for node in graph_module.graph.nodes:
                _keep_own_meta(node)
    return exported


def _keep_own_meta(node: torch.fx.Node) -> None:
    """Keep what the interpreter noted about a node; the tracer's notes and the interpreter's stack say nothing."""
    custom = node.meta.pop("custom", None) or {}
    noted = {key: value for key, value in custom.items() if key in (ONNX, ONNX_OP)}
    if noted:
        node.meta["custom"] = noted
    node.meta.pop("stack_trace", None)


def _input_type(spec: TensorSpec) -> torch.dtype:
    try:
        return torch_dtype(spec.dtype)
    except ValueError as error:
        raise ReadError(f"input '{spec.name}': {error}") from error
