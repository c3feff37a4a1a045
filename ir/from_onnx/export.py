"""Tracing the interpreter: an ONNX model becomes an exported program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import nn

from shave.ir.from_onnx import logic, math, neural, reduction, symbolic, tensor  # noqa: F401  (they fill the table)
from shave.ir.from_onnx.graph import Graph, Model, Node, parse_model
from shave.ir.from_onnx.interpreter import Scope
from shave.ir.from_onnx.values import as_tensor, to_torch, weights


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
        used = _names_read(self._nodes) | {spec.name for spec in model.graph.outputs}
        statistics = {name for node in self._nodes if node.op_type == "BatchNormalization" for name in node.inputs[3:5]}
        for name in sorted(used & folded.values.keys()):
            array = folded.values[name]
            if isinstance(array, np.ndarray) and array.dtype != object:
                self._weight_names[id(array)] = self._add_weight(name, to_torch(array), name in statistics)

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
        *path, leaf = name.split(".") if all(name.split(".")) else [name.replace(".", "_")]
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
    """Trace a model."""
    parsed = parse_model(model)
    module = Interpreter(parsed).eval()
    from shave.ir.from_onnx.values import torch_dtype

    args = tuple(torch.zeros(spec.shape, dtype=torch_dtype(spec.dtype)) for spec in parsed.graph.inputs)
    with torch.fx.traceback.preserve_node_meta():
        return torch.export.export(module, args, strict=False)


def _names_read(nodes: Sequence[Node]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        names.update(node.inputs)
        for graph in node.subgraphs():
            names |= _graph_names_read(graph)
    return names


def _graph_names_read(graph: Graph) -> set[str]:
    return _names_read(graph.nodes) | {spec.name for spec in graph.outputs}
