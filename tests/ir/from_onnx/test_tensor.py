"""Shapes, data movement and indexing against ONNX Runtime, with odd sizes."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.ir.from_onnx.runtime import assert_like_runtime, export_and_run, graph_model, one_node_model

_INT64_MAX = np.iinfo(np.int64).max


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("target", [(3, 10), (-1, 2), (0, -1), (0, 0, 5), (1, 2, 3, 5, 1)])
def test_reshape(target: tuple[int, ...]) -> None:
    inputs = {"x": _floats(3, 2, 5)}
    assert_like_runtime(one_node_model("Reshape", inputs, {"s": _ints(*target)}, order=["x", "s"]), inputs)


def test_reshape_to_nothing_where_zero_means_zero() -> None:
    inputs = {"x": _floats(0, 3)}
    model = one_node_model("Reshape", inputs, {"s": _ints(3, 0)}, order=["x", "s"], allowzero=1)
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int) -> None:
    inputs = {"x": _floats(3, 2, 5)}
    assert_like_runtime(one_node_model("Flatten", inputs, {}, order=["x"], axis=axis), inputs)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [4], [0], [2]),
        ([-3, 0], [_INT64_MAX, -1], [1, 0], [1, 1]),
        ([-1], [-_INT64_MAX], [0], [-1]),
        ([5], [0], [1], [-2]),
        ([10], [20], [0], [1]),
        ([3, 6], [0, 1], [0, 1], [-1, -3]),
    ],
)
def test_slice(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> None:
    inputs = {"x": _floats(5, 7)}
    constants = {"starts": _ints(*starts), "ends": _ints(*ends), "axes": _ints(*axes), "steps": _ints(*steps)}
    assert_like_runtime(one_node_model("Slice", inputs, constants, order=["x", *constants]), inputs)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [(0, 0, 1, 2, 0, 0, 3, 2), (0, 2, 0, 0, 0, 1, 0, 0), (0, 0, -1, 2, 0, 0, 1, -2)])
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    inputs = {"x": _floats(2, 3, 4, 5)}
    constants = {"pads": _ints(*pads), "fill": np.array(1.5, np.float32)}
    model = one_node_model("Pad", inputs, constants, order=["x", "pads", "fill"], opset=19, mode=mode)
    if mode != "constant" and min(pads) < 0:
        # ONNX Runtime does not both crop and reflect; the definition by indices does.
        (y,) = export_and_run(model, inputs)
        rows, columns = (
            np.arange(-low, size + high) for low, size, high in zip(pads[2:4], (4, 5), pads[6:], strict=True)
        )
        wrap = {
            "edge": lambda i, n: np.clip(i, 0, n - 1),
            "wrap": np.mod,
            "reflect": lambda i, n: np.minimum(i % (2 * n - 2), (2 * n - 2) - i % (2 * n - 2)),
        }[mode]
        np.testing.assert_array_equal(y, inputs["x"][:, :, wrap(rows, 4)][..., wrap(columns, 5)])
    else:
        assert_like_runtime(model, inputs)


@pytest.mark.parametrize(("sizes", "parts"), [(None, 2), (None, 3), ((1, 4, 2), 3)])
def test_split(sizes: tuple[int, ...] | None, parts: int) -> None:
    inputs = {"x": _floats(3, 7)}
    outputs = [f"y{i}" for i in range(parts)]
    attributes = {"axis": 1} if sizes else {"axis": -1, "num_outputs": parts}
    constants = {"sizes": _ints(*sizes)} if sizes else {}
    model = one_node_model("Split", inputs, constants, order=["x", *constants], outputs=outputs, opset=18, **attributes)
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("target", [(3, 1), (1, 4), (2, 3, 4), (1,)])
def test_expand_both_ways(target: tuple[int, ...]) -> None:
    inputs = {"x": _floats(3, 1)}
    assert_like_runtime(one_node_model("Expand", inputs, {"s": _ints(*target)}, order=["x", "s"]), inputs)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", [np.array(2), np.array([1]), np.array([0, -1, 2]), np.array([[0, 1], [-2, 2]])])
@pytest.mark.parametrize("known", [True, False])
def test_gather(axis: int, indices: np.ndarray, known: bool) -> None:
    inputs = {"x": _floats(3, 5, 4)}
    extra = {"i": indices.astype(np.int64)}
    inputs_all = inputs if known else {**inputs, **extra}
    model = one_node_model("Gather", inputs_all, extra if known else {}, order=["x", "i"], axis=axis)
    assert_like_runtime(model, inputs_all)


def test_embedding_is_kept_whole() -> None:
    from shave.ir.from_onnx import export_onnx

    inputs = {"i": _ints(3, -1, 0).reshape(1, 3)}
    model = one_node_model("Gather", inputs, {"table": _floats(5, 4)}, order=["table", "i"])
    assert_like_runtime(model, inputs)
    assert any("embedding" in str(node.target) for node in export_onnx(model).graph.nodes)


@pytest.mark.parametrize("batch", [0, 1])
def test_gather_nd(batch: int) -> None:
    inputs = {"x": _floats(2, 3, 4), "i": np.array([[[1], [0], [-1]], [[0], [2], [1]]], np.int64)[:, : 3 - batch]}
    inputs["i"] = inputs["i"] % (3 if batch else 2)
    assert_like_runtime(one_node_model("GatherND", inputs, {}, order=["x", "i"], batch_dims=batch), inputs)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter(reduction: str) -> None:
    x, updates = _floats(3, 5), _floats(3, 2) * 2
    inputs = {"x": x, "i": np.array([[1, -1], [0, 2], [4, 3]], np.int64), "u": updates}
    model = one_node_model("ScatterElements", inputs, {}, order=["x", "i", "u"], opset=18, axis=1, reduction=reduction)
    assert_like_runtime(model, inputs)
    inputs = {"x": _floats(4, 3), "i": np.array([[2], [0]], np.int64), "u": _floats(2, 3) * 2}
    model = one_node_model("ScatterND", inputs, {}, order=["x", "i", "u"], opset=18, reduction=reduction)
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_prefers_the_lower_index_among_equals(largest: int) -> None:
    inputs = {"x": np.array([[1, 3, 3, 2, 1, 3], [0, 0, 0, 0, 0, 0]], np.float32)}
    model = one_node_model("TopK", inputs, {"k": _ints(4)}, order=["x", "k"], outputs=["v", "i"], largest=largest)
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot_ignores_indices_out_of_range(axis: int) -> None:
    inputs = {"i": np.array([[0, 2, -1], [5, 1, -4]], np.int64)}
    constants = {"depth": np.array(3), "values": np.array([0.5, 2.0], np.float32)}
    assert_like_runtime(one_node_model("OneHot", inputs, constants, order=["i", "depth", "values"], axis=axis), inputs)


def test_outputs_whose_size_depends_on_the_data() -> None:
    inputs = {"x": np.array([[0.0, 1.5, 0.0], [2.0, 0.0, 1.5]], np.float32)}
    assert_like_runtime(one_node_model("NonZero", inputs, {}, order=["x"]), inputs)
    for order in (0, 1):
        model = one_node_model("Unique", inputs, {}, order=["x"], outputs=["y", "first", "inverse", "n"], sorted=order)
        assert_like_runtime(model, inputs)
    inputs["c"] = np.array([True, False, True])
    assert_like_runtime(one_node_model("Compress", inputs, {}, order=["x", "c"], axis=1), inputs)


def test_reverse_sequence_on_either_layout() -> None:
    inputs = {"x": _floats(4, 3, 2), "n": _ints(1, 4, 2)}
    model = one_node_model("ReverseSequence", inputs, {}, order=["x", "n"], time_axis=0, batch_axis=1)
    assert_like_runtime(model, inputs)
    inputs = {"x": _floats(3, 4, 2), "n": _ints(0, 4, 3)}
    model = one_node_model("ReverseSequence", inputs, {}, order=["x", "n"], time_axis=1, batch_axis=0)
    (y,) = export_and_run(model, inputs)
    expected = inputs["x"].copy()
    for batch, length in enumerate(inputs["n"]):
        expected[batch, :length] = expected[batch, :length][::-1]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    inputs = {"x": _floats(2, 12, 3, 5)}
    assert_like_runtime(one_node_model("DepthToSpace", inputs, {}, order=["x"], blocksize=2, mode=mode), inputs)
    inputs = {"x": _floats(2, 3, 4, 6)}
    assert_like_runtime(one_node_model("SpaceToDepth", inputs, {}, order=["x"], blocksize=2), inputs)


def test_triangles_eyes_ranges_and_fills() -> None:
    inputs = {"x": _floats(2, 4, 5)}
    for upper in (0, 1):
        for k in (-2, 0, 1):
            model = one_node_model("Trilu", inputs, {"k": np.array(k)}, order=["x", "k"], upper=upper)
            assert_like_runtime(model, inputs)
    matrix = {"x": _floats(3, 5)}
    assert_like_runtime(one_node_model("EyeLike", matrix, {}, order=["x"], k=1, dtype=TensorProto.INT32), matrix)
    bounds = {"a": np.array(7, np.int64), "b": np.array(-2, np.int64), "d": np.array(-3, np.int64)}
    assert_like_runtime(one_node_model("Range", {}, bounds, order=["a", "b", "d"]), {})
    for sizes in ((2, 3), (40, 50), (0, 4)):
        fill = helper.make_tensor("fill", TensorProto.FLOAT16, [1], [1.5])
        assert_like_runtime(one_node_model("ConstantOfShape", {}, {"s": _ints(*sizes)}, order=["s"], value=fill), {})


@pytest.mark.parametrize("kind", ["value", "value_float", "value_floats", "value_int", "value_ints", "sparse_value"])
def test_every_form_of_a_constant(kind: str) -> None:
    if kind == "sparse_value":
        values = helper.make_tensor("v", TensorProto.FLOAT, [2], [1.5, -2.0])
        places = helper.make_tensor("i", TensorProto.INT64, [2], [1, 5])
        value = helper.make_sparse_tensor(values, places, [2, 3])
    else:
        value = {
            "value": helper.make_tensor("v", TensorProto.FLOAT, [2, 3], [1, 2, 3, 4, 5, 6]),
            "value_float": 1.5,
            "value_floats": [1.5, -2.5],
            "value_int": 3,
            "value_ints": [3, -4],
        }[kind]
    (y,) = export_and_run(graph_model([helper.make_node("Constant", [], ["y"], **{kind: value})], {}, {}, ["y"]), {})
    expected = {
        "value": np.array([[1, 2, 3], [4, 5, 6]], np.float32),
        "value_float": np.array(1.5, np.float32),
        "value_floats": np.array([1.5, -2.5], np.float32),
        "value_int": np.array(3),
        "value_ints": np.array([3, -4]),
        "sparse_value": np.array([[0, 1.5, 0], [0, 0, -2]], np.float32),
    }[kind]
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)
