"""Comparing what the reader makes of a small model with ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from shave.ir.from_onnx.export import export_onnx
from shave.ir.from_onnx.values import to_numpy, to_torch


def one_node_model(
    op_type: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    *,
    order: Sequence[str],
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node: ``order`` names its inputs (empty: omitted), taken from the graph's inputs and constants."""
    node = helper.make_node(op_type, list(order), list(outputs), name="the_node", **attributes)
    return graph_model([node], inputs, constants, [name for name in outputs if name], opset=opset)


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of some nodes, its outputs' types inferred."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [_info(name, array) for name, array in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def export_and_run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the exported program."""
    with torch.no_grad():
        outputs = export_onnx(model).module()(*(to_torch(array) for array in inputs.values()))
    return [to_numpy(output) for output in outputs]


def run_in_runtime(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs that ONNX Runtime gives, without its own rewriting."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


def assert_like_runtime(
    model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], *, rtol: float = 1e-5, atol: float = 1e-6
) -> list[np.ndarray]:
    """The exported program gives what ONNX Runtime gives: dtype, shape and numbers."""
    actual, expected = export_and_run(model, inputs), run_in_runtime(model, inputs)
    assert len(actual) == len(expected)
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.dtype == theirs.dtype, index
        assert ours.shape == theirs.shape, index
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=f"output {index}")
    return actual


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
