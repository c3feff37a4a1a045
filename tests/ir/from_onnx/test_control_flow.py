"""If, Loop and Scan against ONNX Runtime; what cannot be decided while reading is refused by name."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from shave.ir.errors import ReadError
from shave.ir.from_onnx import control_flow
from shave.ir.from_onnx.export import export_onnx
from tests.ir.from_onnx.runtime import assert_like_runtime, export_and_run, graph_model

X = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(5, 5)).astype(np.float32)
K = np.random.default_rng(2).normal(size=(5,)).astype(np.float32)


def value(name: str, shape: list[int] | None = None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def branch(nodes, output, *, constants=None) -> onnx.GraphProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    return helper.make_graph(nodes, output, [], [value(output)], initializers)


def if_model(condition: str = "flag", *, constant: bool | None = None, then=None, otherwise=None) -> onnx.ModelProto:
    """y = If(flag, relu(x) @ w + 1, x - k): outer tensors, outer weights and constants of the branches."""
    then = then or branch(
        [
            helper.make_node("Relu", ["x"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w"], ["m"]),
            helper.make_node("Add", ["m", "one"], ["t"]),
        ],
        "t",
        constants={"one": np.full((1, 5), 1.5, np.float32)},
    )
    otherwise = otherwise or branch([helper.make_node("Sub", ["x", "k"], ["e"])], "e")
    nodes = [helper.make_node("If", [condition], ["y"], name="choice", then_branch=then, else_branch=otherwise)]
    inputs = {"x": X} if constant is not None else {"x": X, "flag": np.array(True)}
    constants = {"w": W, "k": K} | ({} if constant is None else {"flag": np.array(constant)})
    return graph_model(nodes, inputs, constants, ["y"])


def targets(model) -> list[str]:
    return [str(node.target) for node in export_onnx(model).graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("flag", [True, False])
def test_known_condition_leaves_one_branch(flag):
    model = if_model(constant=flag)
    assert_like_runtime(model, {"x": X})
    assert "cond" not in " ".join(targets(model))
    assert ("aten.relu.default" in targets(model)) == flag


@pytest.mark.parametrize("flag", [True, False])
def test_computed_condition_becomes_cond(flag):
    model = if_model()
    assert_like_runtime(model, {"x": X, "flag": np.array(flag)})
    assert [target for target in targets(model) if target == "cond" or target.endswith(".cond")]


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # within torch itself
def test_cond_survives_decomposition():
    program = export_onnx(if_model()).run_decompositions({})
    for flag in (True, False):
        (y,) = program.module()(torch.from_numpy(X), torch.tensor(flag))
        expected = np.maximum(X, 0) @ W + 1.5 if flag else X - K
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_weights_of_cond_stay_parameters():
    assert {"w", "k"} <= {name for name, _ in export_onnx(if_model()).named_parameters()}


@pytest.mark.parametrize("flag", [True, False])
def test_branches_that_only_view_an_outer_tensor(flag):
    then = branch([helper.make_node("Identity", ["x"], ["t"])], "t")
    otherwise = branch(
        [
            helper.make_node("Transpose", ["x"], ["e0"], perm=[1, 0]),
            helper.make_node("Transpose", ["e0"], ["e"], perm=[1, 0]),
        ],
        "e",
    )
    assert_like_runtime(if_model(then=then, otherwise=otherwise), {"x": X, "flag": np.array(flag)})


@pytest.mark.parametrize("flags", [(a, b) for a in (True, False) for b in (True, False)])
def test_nested_computed_conditions(flags):
    inner_then = branch([helper.make_node("MatMul", ["h", "w"], ["it"])], "it")
    inner_else = branch([helper.make_node("Add", ["h", "x"], ["ie"])], "ie")
    then = branch(
        [
            helper.make_node("Mul", ["x", "k"], ["h"]),
            helper.make_node("If", ["flag2"], ["t"], then_branch=inner_then, else_branch=inner_else),
        ],
        "t",
    )
    model = if_model(then=then)
    model.graph.input.append(value("flag2", [], TensorProto.BOOL))
    assert_like_runtime(model, {"x": X, "flag": np.array(flags[0]), "flag2": np.array(flags[1])})


def loop_model(trips, *, body_condition: str = "go_in", inputs=None) -> onnx.ModelProto:
    """Carries s = s @ w + x and a counter that is known; scans s and the counter."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", [body_condition], ["go_out"]),
            helper.make_node("MatMul", ["s", "w"], ["m"]),
            helper.make_node("Add", ["m", "x"], ["s_out"]),
            helper.make_node("Add", ["n", "step"], ["n_out"]),
            helper.make_node("Add", ["n_out", "i"], ["n_row"]),
            helper.make_node("Identity", ["s_out"], ["s_row"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go_in", [], TensorProto.BOOL), value("s", [3, 5]),
         value("n", [], TensorProto.INT64)],
        [value("go_out", [], TensorProto.BOOL), value("s_out", [3, 5]), value("n_out", [], TensorProto.INT64),
         value("s_row", [3, 5]), value("n_row", [], TensorProto.INT64)],
    )  # fmt: skip
    node = helper.make_node(
        "Loop", ["trips", "go", "x", "start"], ["s_end", "n_end", "s_all", "n_all"], name="loop", body=body
    )
    constants = {"w": W, "go": np.array(True), "start": np.array(10), "step": np.array(3)}
    if trips is not None:
        constants["trips"] = np.array(trips)
    return graph_model([node], inputs or {"x": X}, constants, ["s_end", "n_end", "s_all", "n_all"])


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_loop_is_unrolled(trips):
    assert_like_runtime(loop_model(trips), {"x": X}, rtol=1e-4)
    assert targets(loop_model(trips)).count("aten.matmul.default") == trips


def test_values_known_in_a_loop_fold():
    # The counter only passes through constants: its results are constants of the program.
    names = targets(loop_model(3))
    assert len([name for name in names if name.startswith("aten.add")]) == 3


def test_loop_that_its_condition_ends():
    body = helper.make_graph(
        [helper.make_node("Less", ["i", "last"], ["go_out"]), helper.make_node("Mul", ["s", "k"], ["s_out"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go_in", [], TensorProto.BOOL), value("s", [3, 5])],
        [value("go_out", [], TensorProto.BOOL), value("s_out", [3, 5])],
    )
    node = helper.make_node("Loop", ["", "go", "x"], ["y"], body=body)
    constants = {"k": K, "go": np.array(True), "last": np.array(2)}
    model = graph_model([node], {"x": X}, constants, ["y"])
    assert_like_runtime(model, {"x": X})
    np.testing.assert_allclose(export_and_run(model, {"x": X})[0], X * K * K * K, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (loop_model(None, inputs={"x": X, "trips": np.array(3)}), "node 'loop' .Loop.: the trip count is computed"),
        (loop_model(10**12), "node 'loop' .Loop.: is unrolled more than 20 times"),
    ],
)
def test_loops_without_a_known_end_are_refused(model, message, monkeypatch):
    monkeypatch.setattr(control_flow, "MOST_REPEATS", 20)
    with pytest.raises(ReadError, match=message):
        export_onnx(model)


def test_nested_loops_count_together(monkeypatch):
    monkeypatch.setattr(control_flow, "MOST_REPEATS", 20)
    inner = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["more_out"]), helper.make_node("Identity", ["t"], ["t_out"])],
        "inner",
        [value("j", [], TensorProto.INT64), value("more", [], TensorProto.BOOL), value("t", [3, 5])],
        [value("more_out", [], TensorProto.BOOL), value("t_out", [3, 5])],
    )
    outer = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]),
         helper.make_node("Loop", ["trips", "", "s"], ["s_out"], name="inner", body=inner)],
        "outer",
        [value("i", [], TensorProto.INT64), value("go_in", [], TensorProto.BOOL), value("s", [3, 5])],
        [value("go_out", [], TensorProto.BOOL), value("s_out", [3, 5])],
    )  # fmt: skip
    node = helper.make_node("Loop", ["trips", "", "x"], ["y"], name="outer", body=outer)
    with pytest.raises(ReadError, match=r"node 'outer/inner' .Loop.: is unrolled more than 20 times"):
        export_onnx(graph_model([node], {"x": X}, {"trips": np.array(5)}, ["y"]))


def test_loop_with_a_computed_condition_is_refused():
    model = loop_model(3, body_condition="flag", inputs={"x": X, "flag": np.array(True)})
    with pytest.raises(ReadError, match=r"node 'loop' .Loop.: the condition to go on is computed"):
        export_onnx(model)


@pytest.mark.parametrize(
    ("in_axis", "out_axis", "in_direction", "out_direction"), [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 0), (1, 1, 0, 1)]
)
def test_scan_is_unrolled(in_axis, out_axis, in_direction, out_direction):
    rng = np.random.default_rng(3)
    sequence = rng.normal(size=(4, 4)).astype(np.float32)
    state = rng.normal(size=(4,)).astype(np.float32)
    body = helper.make_graph(
        [helper.make_node("Mul", ["s", "f"], ["p"]), helper.make_node("Add", ["p", "e"], ["s_out"]),
         helper.make_node("Neg", ["s_out"], ["row"])],
        "body",
        [value("s", [4]), value("e", [4])],
        [value("s_out", [4]), value("row", [4])],
    )  # fmt: skip
    node = helper.make_node(
        "Scan", ["state", "sequence"], ["end", "rows"], body=body, num_scan_inputs=1, scan_input_axes=[in_axis],
        scan_output_axes=[out_axis], scan_input_directions=[in_direction], scan_output_directions=[out_direction],
    )  # fmt: skip
    inputs = {"state": state, "sequence": sequence}
    model = graph_model([node], inputs, {"f": np.array([0.5, 2, -1, 1], np.float32)}, ["end", "rows"])
    assert_like_runtime(model, inputs)
