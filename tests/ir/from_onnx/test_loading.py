"""Files that are damaged, incomplete, unsafe or unsupported; names, types and forms that must survive."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from shave.ir.errors import ReadError
from shave.ir.from_onnx import export_onnx, read_onnx
from tests.ir.from_onnx.runtime import assert_like_runtime, export_and_run, graph_model

_X = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -3.0]], np.float32)


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _linear_model(**constants: np.ndarray) -> onnx.ModelProto:
    weights = {"w": _weights(3, 4), **constants}
    return graph_model([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"x": _X}, weights, ["y"])


def _save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def _calling(node: onnx.NodeProto, function: onnx.FunctionProto) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, _X.shape)]
    graph = helper.make_graph([node], "graph", inputs, [onnx.ValueInfoProto(name="y")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def _external(folder: Path, location: str) -> Path:
    model = _linear_model()
    (tensor,) = model.graph.initializer
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nothing\.onnx: there is no such file"):
        read_onnx(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model", b"\x00" * 64, b"\xff" * 64])
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=r"model\.onnx: not an ONNX model"):
        read_onnx(path)


def test_no_cut_of_a_file_is_read_or_crashes(tmp_path: Path) -> None:
    whole = _linear_model().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ReadError, match=r"model\.onnx: "):
            read_onnx(path)


def test_external_data_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_linear_model(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    program = read_onnx(path)
    np.testing.assert_allclose(program(torch.from_numpy(_X)).detach(), _X @ _weights(3, 4), rtol=1e-6)


@pytest.mark.parametrize("location", ["gone.data", "../outside.data", "/etc/hostname"])
def test_external_data_that_is_missing_or_outside_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.data").write_bytes(_weights(3, 4).tobytes())
    with pytest.raises(ReadError, match=r"model\.onnx: external data cannot be loaded"):
        read_onnx(_external(folder, location))


def test_all_unknown_operators_are_listed_with_their_nodes_before_any_work(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["b"], name="inner")], "branch", [], [onnx.ValueInfoProto(name="b")]
    )
    function = helper.make_function(
        "local", "wrap", ["a"], ["b"], [helper.make_node("Twist", ["a"], ["b"], name="deep", domain="com.acme")], []
    )
    nodes = [
        helper.make_node("Mystery", ["x"], ["a"], name="first", domain="com.acme"),
        helper.make_node("Mystery", ["a"], ["c"], name="second", domain="com.acme"),
        helper.make_node("If", ["cond"], ["d"], name="choice", then_branch=branch, else_branch=branch),
        helper.make_node("wrap", ["c"], ["y"], domain="local"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("cond", TensorProto.BOOL, [])],
        [onnx.ValueInfoProto(name="y")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1), helper.make_opsetid("local", 1)]
    path = _save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10), tmp_path)
    with pytest.raises(ReadError) as caught:
        read_onnx(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "model.onnx" in message
    assert "com.acme::Mystery (nodes first, second)" in message
    assert "Frobnicate (nodes inner, inner)" in message
    assert "com.acme::Twist (nodes wrap/deep)" in message


def test_a_node_that_cannot_be_read_is_named() -> None:
    inputs = {"x": _X, "s": np.array([3, 2])}
    model = graph_model([helper.make_node("Reshape", ["x", "s"], ["y"], name="late")], inputs, {}, ["y"])
    with pytest.raises(ReadError, match=r"node 'late' \(Reshape\).*known before the model runs"):
        export_onnx(model)
    model = graph_model([helper.make_node("MatMul", ["x", "x"], ["y"], name="wrong")], {"x": _X}, {}, [])
    model.graph.output.append(onnx.ValueInfoProto(name="y"))
    with pytest.raises(ReadError, match=r"node 'wrong' \(MatMul\)"):
        export_onnx(model)


def test_a_name_that_nothing_computes_is_an_error() -> None:
    model = graph_model([helper.make_node("Relu", ["ghost"], ["y"])], {"x": _X}, {}, ["y"])
    with pytest.raises(ReadError, match="ghost"):
        export_onnx(model)


def test_functions_that_call_themselves_are_refused() -> None:
    body = [helper.make_node("loop", ["a"], ["b"], domain="local")]
    function = helper.make_function("local", "loop", ["a"], ["b"], body, [helper.make_opsetid("local", 1)])
    model = _calling(helper.make_node("loop", ["x"], ["y"], domain="local"), function)
    with pytest.raises(ReadError, match="'loop' calls itself"):
        export_onnx(model)


def test_the_models_own_functions_are_expanded_with_their_attributes() -> None:
    node = helper.make_node("Elu", ["a"], ["b"], name="elu")
    node.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    function = helper.make_function("local", "bend", ["a"], ["b"], [node], [helper.make_opsetid("", 17)], ["slope"])
    call = helper.make_node("bend", ["x"], ["y"], name="call", domain="local", slope=0.25)
    model = _calling(call, function)
    np.testing.assert_allclose(
        export_and_run(model, {"x": _X})[0], np.where(_X > 0, _X, 0.25 * np.expm1(_X)), rtol=1e-6
    )
    (elu,) = [node for node in export_onnx(model).graph.nodes if node.op == "call_function"]
    assert elu.meta["custom"] == {"onnx": "call/elu", "onnx_op": "Elu"}


def test_nodes_in_any_order_are_sorted() -> None:
    nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Neg", ["x"], ["h"])]
    model = graph_model(nodes, {"x": _X}, {}, ["y"])
    np.testing.assert_array_equal(export_and_run(model, {"x": _X})[0], np.maximum(-_X, 0))


def test_a_circle_is_an_error() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="one"), helper.make_node("Neg", ["a"], ["b"], name="two")]
    with pytest.raises(ReadError, match=r"in a circle: .*(one, two|two, one)"):
        export_onnx(graph_model(nodes, {"x": _X}, {}, ["b"]))


def test_nan_and_infinity_in_weights_are_told_by_name() -> None:
    model = _linear_model(w=np.full((3, 4), np.nan, np.float32))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, np.inf], np.float16), "unused"))
    with pytest.warns(UserWarning, match="NaN or infinity: w, unused"):
        export_onnx(model)


def test_initializers_that_are_listed_as_inputs_are_weights() -> None:
    model = _linear_model()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    assert_like_runtime(model, {"x": _X})


def test_sparse_initializers_with_either_kind_of_indices() -> None:
    for indices in (np.array([1, 6, 11]), np.array([[0, 1], [1, 2], [2, 3]])):
        model = _linear_model()
        del model.graph.initializer[:]
        values = numpy_helper.from_array(np.array([2.0, -1.0, 0.5], np.float32), "w")
        model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "w_indices"), [3, 4])
        )
        dense = np.zeros(12, np.float32)
        dense[[1, 6, 11]] = [2.0, -1.0, 0.5]
        np.testing.assert_allclose(export_and_run(model, {"x": _X})[0], _X @ dense.reshape(3, 4), rtol=1e-6)


def test_one_weight_stays_one_weight_in_all_its_uses(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "fc.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "fc.weight"], ["y"]),
    ]
    model = graph_model(nodes, {"x": _X}, {"fc.weight": _weights(3, 3)}, ["y"])
    program = read_onnx(_save(model, tmp_path))
    (weight,) = program.graph.find_nodes(op="get_attr")
    assert weight.target == "fc.weight"
    assert len(weight.users) == 2


@pytest.mark.parametrize(
    "names", [["a", "a.b"], ["a.b", "a"], ["forward", "training"], ["a..b", "_model"], ["/x/y:0", "1"]]
)
def test_any_name_of_a_weight_works(names: Sequence[str]) -> None:
    nodes = [helper.make_node("MatMul", ["x", names[0]], ["h"]), helper.make_node("MatMul", ["h", names[1]], ["y"])]
    model = graph_model(nodes, {"x": _X}, {names[0]: _weights(3, 4), names[1]: _weights(4, 2)}, ["y"])
    assert_like_runtime(model, {"x": _X})


def test_what_constants_make_is_folded_into_one_weight() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Mul", ["t", "two"], ["m"]),
        helper.make_node("MatMul", ["x", "m"], ["y"]),
    ]
    constants = {"w": _weights(4, 3), "two": np.array(2, np.float32)}
    model = graph_model(nodes, {"x": _X}, constants, ["y"])
    assert_like_runtime(model, {"x": _X})
    targets = [str(node.target) for node in export_onnx(model).graph.nodes if node.op == "call_function"]
    assert targets == ["aten.matmul.default"]


def test_quantization_of_constants_is_never_folded() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    constants = {"q": np.arange(-6, 6, dtype=np.int8).reshape(3, 4), "scale": np.array(0.1, np.float32)}
    program = export_onnx(graph_model(nodes, {"x": _X}, constants, ["y"]))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("dequantize" in target for target in targets)
    assert {tensor.dtype for tensor in program.state_dict.values()} >= {torch.int8}


def test_names_of_inputs_outputs_and_nodes_survive(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["pixel values:0"], ["h"], name="/body/Relu"),
        helper.make_node("Neg", ["h"], ["out/0"]),
    ]
    program = read_onnx(_save(graph_model(nodes, {"pixel values:0": _X, "unused": _X}, {}, ["out/0", "h"]), tmp_path))
    assert [spec.name for spec in program.signature.inputs] == ["pixel values:0", "unused"]
    assert [spec.name for spec in program.signature.outputs] == ["out/0", "h"]
    relu, neg = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default), None
    assert relu[0].meta["custom"]["onnx"] == "/body/Relu"
    neg = program.graph.find_nodes(op="call_function", target=torch.ops.aten.neg.default)
    assert neg[0].meta["custom"] == {"onnx": "Neg_1", "onnx_op": "Neg"}


def test_outputs_may_be_inputs_constants_and_one_another(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["c"], ["fixed"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["z"]),
    ]
    constants = {"c": np.array([1.5, 2.5], np.float32)}
    model = graph_model(nodes, {"x": _X}, constants, ["same", "fixed", "shape", "y", "z", "c"])
    assert_like_runtime(model, {"x": _X})
    outputs = read_onnx(_save(model, tmp_path))(torch.from_numpy(_X))
    np.testing.assert_array_equal(outputs[1].detach(), constants["c"])
    assert outputs[2].tolist() == [2, 3]
