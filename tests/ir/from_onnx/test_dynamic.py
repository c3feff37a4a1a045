"""Dynamic dimensions: their names, shape arithmetic on them, and models that tie them to one size."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from shave.ir.errors import ReadError
from shave.ir.from_onnx import read_onnx
from tests.ir.from_onnx.runtime import run_in_runtime


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _check(
    model: onnx.ModelProto, folder: Path, *shapes: Sequence[Sequence[int]], dims: Sequence[str] | None = None
) -> None:
    """The program agrees with ONNX Runtime at all these shapes, and the graph holds no trace of shape arithmetic."""
    onnx.save(model, folder / "model.onnx")
    program = read_onnx(folder / "model.onnx")
    if dims is not None:
        assert sorted(program.signature.dims) == sorted(dims)
    for sizes in shapes:
        arrays = [np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in sizes]
        named = dict(zip([spec.name for spec in program.signature.inputs], arrays, strict=True))
        outputs = program(*(torch.from_numpy(array) for array in arrays))
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        for ours, theirs in zip(outputs, run_in_runtime(model, named), strict=True):
            assert tuple(ours.shape) == theirs.shape
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-5, atol=1e-6)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_a_name_is_one_dimension_in_all_inputs(tmp_path: Path) -> None:
    model = _model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ["batch", 3], "b": ["batch", 1]}, {})
    _check(model, tmp_path, [(1, 3), (1, 1)], [(5, 3), (5, 1)], dims=["batch"])


@pytest.mark.parametrize("open_size", [None, -1])
def test_dimensions_without_a_name_get_one(tmp_path: Path, open_size: int | None) -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {"x": [open_size, 3]}, {})
    _check(model, tmp_path, [(2, 3)], [(7, 3)], dims=["x_dim_0"])


def test_the_shape_arithmetic_of_exporters_folds_away(tmp_path: Path) -> None:
    """Heads split, a scale taken from the length, positions sliced from a table, as TorchScript writes them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Gather", ["shape", "one"], ["length"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["batch1"]),
        helper.make_node("Unsqueeze", ["length", "axis"], ["length1"]),
        helper.make_node("Concat", ["batch1", "length1", "heads"], ["split"], axis=0),
        helper.make_node("Reshape", ["x", "split"], ["parts"]),
        helper.make_node("Transpose", ["parts"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Cast", ["length"], ["float_length"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["float_length"], ["root"]),
        helper.make_node("Div", ["turned", "root"], ["scaled"]),
        helper.make_node("Slice", ["table", "axis", "length1", "axis"], ["positions"]),
        helper.make_node("Add", ["scaled", "positions"], ["placed"]),
        helper.make_node("ConstantOfShape", ["length1"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "last"], ["column"]),
        helper.make_node("Add", ["placed", "column"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "axis": _ints(0), "heads": _ints(2, 4), "last": _ints(1)}
    constants["table"] = np.random.default_rng(1).standard_normal((32, 4)).astype(np.float32)
    model = _model(nodes, {"x": ["batch", "len", 8]}, constants)
    _check(model, tmp_path, [(1, 5, 8)], [(3, 17, 8)], [(2, 32, 8)])


def test_comparisons_and_choices_on_dimensions(tmp_path: Path) -> None:
    """How TorchScript writes ``x.expand(-1, n)``: ConstantOfShape, Mul, Equal, Where."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["first"]),
        helper.make_node("Concat", ["first", "wanted"], ["target"], axis=0),
        helper.make_node("Equal", ["target", "minus"], ["open"]),
        helper.make_node("Where", ["open", "ones", "target"], ["sizes"]),
        helper.make_node("Expand", ["x", "sizes"], ["y"]),
    ]
    constants = {"zero": _ints(0), "one": _ints(1), "wanted": _ints(-1, 4), "minus": _ints(-1), "ones": _ints(1, 1, 1)}
    _check(_model(nodes, {"x": ["batch", 3, 1]}, constants), tmp_path, [(1, 3, 1)], [(5, 3, 1)])


def test_shapes_may_be_outputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["y"]), helper.make_node("Size", ["x"], ["n"])]
    _check(_model(nodes, {"x": ["batch", 3]}, {}, ["y", "n"]), tmp_path, [(1, 3)], [(4, 3)])


def test_convolutions_and_pools_of_any_image_size(tmp_path: Path) -> None:
    weight = np.random.default_rng(2).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2], auto_pad="SAME_UPPER"),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["p"], ["a"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Resize", ["a", "", "s"], ["r"], mode="nearest"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    constants = {"w": weight, "s": np.array([1, 1, 2, 2], np.float32)}
    model = _model(nodes, {"x": ["N", 3, "H", 41]}, constants)
    _check(model, tmp_path, [(1, 3, 32, 41)], [(2, 3, 33, 41)], dims=["N", "H"])


def test_resizing_a_batch_of_any_size_to_sizes_taken_from_its_shape(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["front"]),
        helper.make_node("Concat", ["front", "image"], ["sizes"], axis=0),
        helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="align_corners"
        ),
    ]
    constants = {"zero": _ints(0), "two": _ints(2), "image": _ints(7, 11)}
    model = _model(nodes, {"x": ["N", 3, 4, 5]}, constants)
    _check(model, tmp_path, [(1, 3, 4, 5)], [(3, 3, 4, 5)], dims=["N"])


def test_pooling_of_any_length(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["m"], kernel_shape=[3], strides=[2], pads=[1, 1]),
        helper.make_node("AveragePool", ["m"], ["y"], kernel_shape=[2], strides=[2]),
    ]
    _check(_model(nodes, {"x": ["N", 2, "T"]}, {}), tmp_path, [(1, 2, 40)], [(3, 2, 23)], dims=["N", "T"])


def test_a_dimension_that_the_model_ties_to_one_size_is_fixed_with_a_warning(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    constants = {"s": _ints(1, -1), "w": np.ones((6, 2), np.float32)}
    onnx.save(_model(nodes, {"x": ["batch", 2, 3]}, constants), tmp_path / "model.onnx")
    with pytest.warns(UserWarning, match="one size of dynamic dimensions only; fixed: batch = 1"):
        program = read_onnx(tmp_path / "model.onnx")
    assert program.signature.inputs[0].shape == (1, 2, 3)


def test_shapes_of_the_callers_choice(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    onnx.save(_model(nodes, {"a": ["batch", "len"], "b": ["batch", "len"]}, {}), tmp_path / "model.onnx")
    program = read_onnx(tmp_path / "model.onnx", input_shapes={"a": [4, "time"]})
    assert [spec.shape for spec in program.signature.inputs] == [(4, "time"), (4, "time")]
    with pytest.raises(ReadError, match=r"shapes are given for c, but the inputs are a, b"):
        read_onnx(tmp_path / "model.onnx", input_shapes={"c": [1]})
    with pytest.raises(ReadError, match=r"input 'a' has 2 dimensions"):
        read_onnx(tmp_path / "model.onnx", input_shapes={"a": [1]})


def test_an_input_of_unknown_rank_needs_a_shape(tmp_path: Path) -> None:
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 3]}, {})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ReadError, match="how many dimensions input 'x' has"):
        read_onnx(tmp_path / "model.onnx")
    assert read_onnx(tmp_path / "model.onnx", input_shapes={"x": [2, 3]}).signature.inputs[0].shape == (2, 3)


@pytest.mark.shared
@pytest.mark.parametrize(
    "file",
    [
        "models_imagenet/tiny_darknet_fp32.onnx",
        "models_imagenet/mobilenetv2_1.0_224_tf2_wdq.onnx",
        "speech_commands/kwt1_fp32.onnx",
        "speech_commands/mlperf_tiny_dscnn_fp32.onnx",
        "models_cifar10/mlperf_tiny_resnet8_cifar10.onnx",
    ],
)
def test_real_models_agree_with_onnx_runtime_at_any_batch(file: str, shared_data: Path) -> None:
    path = shared_data / file
    if not path.is_file():
        pytest.skip(f"../shared/data/{file} is not here")
    program = read_onnx(path)
    (spec,) = program.signature.inputs
    assert spec.shape[0] == "N"
    for batch in (1, 3):
        shape = (batch, *(int(size) for size in spec.shape[1:]))
        x = np.random.default_rng(batch).standard_normal(shape).astype(np.float32)
        (expected,) = run_in_runtime(onnx.load(path), {spec.name: x})
        with torch.no_grad():
            actual = program(torch.from_numpy(x)).numpy()
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    if "wdq" in file:
        kept = [node for node in program.graph.nodes if "dequantize_per_channel" in str(node.target)]
        assert len(kept) == 53
        assert all(node.args[0].meta["val"].dtype == torch.int8 for node in kept)
