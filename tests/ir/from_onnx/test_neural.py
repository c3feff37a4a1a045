"""Convolution, pooling, normalisation, activation, resizing, sampling and losses against ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from shave.ir.errors import ReadError
from shave.ir.from_onnx import export_onnx
from tests.ir.from_onnx.runtime import assert_like_runtime, export_and_run, graph_model, one_node_model

_RANDOM = np.random.default_rng(7)


def _floats(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 2, 1, 2], "strides": [2, 1]},
        {"pads": [0, 1, 2, 0]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID", "dilations": [2, 1]},
        {"group": 3, "pads": [1, 1, 1, 1]},
    ],
)
def test_conv(attributes: dict[str, object]) -> None:
    inputs = {"x": _floats(2, 6, 9, 11)}
    groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
    constants = {"w": _floats(9, 6 // groups, 3, 2), "b": _floats(9)}
    model = one_node_model("Conv", inputs, constants, order=["x", "w", "b"], **attributes)
    assert_like_runtime(model, inputs, atol=1e-5)


@pytest.mark.parametrize("spatial", [(11,), (5, 6, 7)])
def test_conv_of_one_and_three_dimensions(spatial: tuple[int, ...]) -> None:
    rank = len(spatial)
    inputs = {"x": _floats(1, 4, *spatial)}
    constants = {"w": _floats(3, 4, *[3] * rank)}
    model = one_node_model("Conv", inputs, constants, order=["x", "w"], pads=[1] * rank + [0] * rank)
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 2, 1]},
        {"strides": [3, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
        {"strides": [3, 3], "output_shape": [10, 13]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"dilations": [2, 2], "group": 2},
        {"pads": [3, 3, 0, 0]},
    ],
)
def test_conv_transpose(attributes: dict[str, object]) -> None:
    inputs = {"x": _floats(1, 4, 4, 5)}
    constants = {"w": _floats(4, 3, 3, 3), "b": _floats(6 if "group" in attributes else 3)}
    model = one_node_model("ConvTranspose", inputs, constants, order=["x", "w", "b"], **attributes)
    assert_like_runtime(model, inputs)


_POOLS = [
    {"kernel_shape": [3, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1]},
]


@pytest.mark.parametrize("attributes", _POOLS)
@pytest.mark.parametrize("outputs", [["y"], ["y", "indices"]])
def test_max_pool(attributes: dict[str, object], outputs: list[str]) -> None:
    inputs = {"x": _floats(2, 3, 8, 9)}
    model = one_node_model("MaxPool", inputs, {}, order=["x"], outputs=outputs, **attributes)
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("attributes", _POOLS)
@pytest.mark.parametrize("include_pad", [0, 1])
def test_average_pool(attributes: dict[str, object], include_pad: int) -> None:
    inputs = {"x": _floats(2, 3, 8, 9)}
    model = one_node_model(
        "AveragePool", inputs, {}, order=["x"], opset=19, count_include_pad=include_pad, **attributes
    )
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("attributes", _POOLS)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(attributes: dict[str, object], p: int) -> None:
    inputs = {"x": _floats(2, 3, 8, 9)}
    assert_like_runtime(one_node_model("LpPool", inputs, {}, order=["x"], opset=18, p=p, **attributes), inputs)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("spatial", [(9,), (5, 4, 6)])
def test_pools_of_one_and_three_dimensions(op: str, spatial: tuple[int, ...]) -> None:
    inputs = {"x": _floats(1, 2, *spatial)}
    rank = len(spatial)
    model = one_node_model(
        op, inputs, {}, order=["x"], kernel_shape=[2] * rank, strides=[2] * rank, pads=[1] * 2 * rank
    )
    assert_like_runtime(model, inputs)


def test_max_pool_indices_in_column_major_order() -> None:
    inputs = {"x": _floats(2, 2, 5, 4)}
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "storage_order": 1}
    model = one_node_model("MaxPool", inputs, {}, order=["x"], outputs=["y", "i"], **attributes)
    assert_like_runtime(model, inputs)


def test_max_unpool_undoes_max_pool() -> None:
    inputs = {"x": _floats(2, 3, 6, 8)}
    pooling = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["v", "i"], **pooling),
        helper.make_node("MaxUnpool", ["v", "i"], ["y"], **pooling),
    ]
    assert_like_runtime(graph_model(nodes, inputs, {}, ["y"]), inputs)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pools(op: str) -> None:
    inputs = {"x": _floats(2, 3, 5, 7)}
    assert_like_runtime(one_node_model(op, inputs, {}, order=["x"]), inputs)


def test_normalisations() -> None:
    inputs = {"x": _floats(2, 6, 5, 3)}
    channels = {"scale": _floats(6), "bias": _floats(6), "mean": _floats(6), "var": np.abs(_floats(6)) + 0.1}
    model = one_node_model("BatchNormalization", inputs, channels, order=["x", *channels], epsilon=1e-3)
    assert_like_runtime(model, inputs)
    pair = {"scale": channels["scale"], "bias": channels["bias"]}
    assert_like_runtime(one_node_model("InstanceNormalization", inputs, pair, order=["x", "scale", "bias"]), inputs)
    for size in (3, 5):
        assert_like_runtime(one_node_model("LRN", inputs, {}, order=["x"], size=size, alpha=0.1, bias=2.0), inputs)
    for p in (1, 2):
        assert_like_runtime(one_node_model("LpNormalization", inputs, {}, order=["x"], axis=1, p=p), inputs)
    assert_like_runtime(one_node_model("MeanVarianceNormalization", inputs, {}, order=["x"]), inputs)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("outputs", [["y"], ["y", "mean", "deviation"]])
def test_layer_normalisation(axis: int, outputs: list[str]) -> None:
    inputs = {"x": _floats(2, 6, 5)}
    shape = inputs["x"].shape[axis:]
    constants = {"scale": _floats(*shape), "bias": _floats(*shape)}
    model = one_node_model("LayerNormalization", inputs, constants, order=["x", *constants], outputs=outputs, axis=axis)
    assert_like_runtime(model, inputs)


def test_rms_normalisation() -> None:
    inputs, constants = {"x": _floats(2, 3, 5)}, {"scale": _floats(5)}
    model = one_node_model("RMSNormalization", inputs, constants, order=["x", "scale"], opset=23, epsilon=1e-3)
    x = inputs["x"].astype(np.float64)
    expected = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * constants["scale"]
    np.testing.assert_allclose(export_and_run(model, inputs)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "attributes", "opset"),
    [
        ("Elu", {"alpha": 0.7}, 17),
        ("Celu", {"alpha": 0.7}, 17),
        ("Selu", {"alpha": 1.5, "gamma": 1.2}, 17),
        ("LeakyRelu", {"alpha": 0.2}, 17),
        ("ThresholdedRelu", {"alpha": 0.4}, 17),
        ("HardSigmoid", {}, 17),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 17),
        ("HardSwish", {}, 17),
        ("Softplus", {}, 17),
        ("Softsign", {}, 17),
        ("Mish", {}, 18),
        ("Gelu", {}, 20),
        ("Gelu", {"approximate": "tanh"}, 20),
        ("Shrink", {"bias": 0.3, "lambd": 0.4}, 17),
    ],
)
def test_activations(op: str, attributes: dict[str, object], opset: int) -> None:
    inputs = {"x": _floats(3, 5) * 3}
    assert_like_runtime(one_node_model(op, inputs, {}, order=["x"], opset=opset, **attributes), inputs)


@pytest.mark.parametrize("slope", [(1,), (3, 1, 1), (4, 5), (3, 4, 5)])
def test_prelu(slope: tuple[int, ...]) -> None:
    inputs = {"x": _floats(2, 3, 4, 5)}
    assert_like_runtime(one_node_model("PRelu", inputs, {"s": _floats(*slope)}, order=["x", "s"]), inputs)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_over_one_axis_or_before_version_13_over_all_that_follow(op: str, opset: int, axis: int) -> None:
    inputs = {"x": _floats(2, 3, 4)}
    assert_like_runtime(one_node_model(op, inputs, {}, order=["x"], opset=opset, axis=axis), inputs)


def test_dropout_keeps_everything_and_says_so() -> None:
    inputs = {"x": _floats(3, 4)}
    model = one_node_model("Dropout", inputs, {"r": np.array(0.5, np.float32)}, order=["x", "r"], outputs=["y", "mask"])
    _, mask = assert_like_runtime(model, inputs)
    assert mask.all()
    constants = {"r": np.array(0.5, np.float32), "t": np.array(True)}
    training = one_node_model("Dropout", inputs, constants, order=["x", "r", "t"])
    with pytest.raises(ReadError, match=r"the_node.*export the model for inference"):
        export_onnx(training)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transform", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("sizes", [(1, 2, 8, 10), (1, 2, 3, 4), (1, 2, 7, 3)])
def test_resize_to_sizes(mode: str, transform: str, sizes: tuple[int, ...]) -> None:
    inputs = {"x": _floats(1, 2, 4, 5)}
    model = one_node_model(
        "Resize",
        inputs,
        {"s": np.array(sizes)},
        order=["x", "", "", "s"],
        mode=mode,
        coordinate_transformation_mode=transform,
        opset=19,
    )
    assert_like_runtime(model, inputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("scale", [2.0, 1.7, 0.6])
def test_nearest_rounding(nearest: str, scale: float) -> None:
    inputs = {"x": _floats(1, 1, 5, 7)}
    model = one_node_model(
        "Resize",
        inputs,
        {"s": np.array([1, 1, scale, scale], np.float32)},
        order=["x", "", "s"],
        nearest_mode=nearest,
        opset=19,
    )
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_in_rare_forms(mode: str) -> None:
    inputs = {"x": _floats(1, 1, 6, 8)}
    scales = {"s": np.array([1, 1, 0.5, 0.75], np.float32)}
    model = one_node_model("Resize", inputs, scales, order=["x", "", "s"], opset=19, mode=mode, antialias=1)
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    np.testing.assert_allclose(export_and_run(model, inputs)[0], expected, rtol=1e-4, atol=1e-5)
    constants = {"roi": np.array([0, 0, 0.2, 0.4, 1, 1, 1.3, 0.8], np.float32), "sizes": np.array([1, 1, 5, 4])}
    transform = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 10.0}
    model = one_node_model(
        "Resize", inputs, constants, order=["x", "roi", "", "sizes"], opset=19, mode=mode, **transform
    )
    assert_like_runtime(model, inputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    inputs = {"x": _floats(2, 3, 5, 6), "grid": _floats(2, 4, 3, 2)}
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    model = one_node_model("GridSample", inputs, {}, order=["x", "grid"], opset=20, **attributes)
    assert_like_runtime(model, inputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize("transform", ["half_pixel", "output_half_pixel"])
def test_roi_align(mode: str, ratio: int, transform: str) -> None:
    rois = np.array([[0, 0, 7, 6], [1.3, 2.2, 5.9, 9.8], [3, 3, 3.5, 3.2]], np.float32)
    inputs = {"x": _floats(2, 3, 11, 9), "rois": rois, "batch": np.array([0, 1, 1])}
    attributes = {"output_height": 3, "output_width": 2, "spatial_scale": 0.9}
    attributes |= {"mode": mode, "sampling_ratio": ratio, "coordinate_transformation_mode": transform}
    model = one_node_model("RoiAlign", inputs, {}, order=["x", "rois", "batch"], opset=16, **attributes)
    assert_like_runtime(model, inputs, rtol=1e-4, atol=1e-5)


def test_deformable_convolution() -> None:
    inputs = {"x": _floats(2, 4, 7, 6), "offset": _floats(2, 2 * 2 * 9, 4, 3) * 1.5, "mask": _floats(2, 2 * 9, 4, 3)}
    constants = {"w": _floats(6, 2, 3, 3), "b": _floats(6)}
    attributes = {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2, "offset_group": 2}
    order = ["x", "w", "offset", "b", "mask"]
    model = one_node_model("DeformConv", inputs, constants, order=order, opset=19, **attributes)
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    np.testing.assert_allclose(export_and_run(model, inputs)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses(reduction: str, weighted: bool) -> None:
    inputs = {"x": _floats(3, 5, 2), "t": np.array([[0, 4], [2, 2], [1, 3]])}
    constants = {"w": np.abs(_floats(5))} if weighted else {}
    order = ["x", "t", *constants]
    attributes = {"reduction": reduction, "ignore_index": 2}
    model = one_node_model("NegativeLogLikelihoodLoss", inputs, constants, order=order, **attributes)
    assert_like_runtime(model, inputs)
    model = one_node_model("SoftmaxCrossEntropyLoss", inputs, constants, order=order, outputs=["y", "p"], **attributes)
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("past", [0, 3])
def test_attention_is_kept_whole(causal: int, mask: str | None, past: int) -> None:
    inputs = {"q": _floats(2, 4, 5, 8), "k": _floats(2, 2, 5, 8), "v": _floats(2, 2, 5, 6)}
    order = ["q", "k", "v", ""]
    if mask is not None:
        order[3] = "mask"
        values = _floats(5, 5 + past)
        inputs["mask"] = (values > -1) | np.eye(5, 5 + past, dtype=bool) if mask == "bool" else values
    outputs = ["y"]
    if past:
        inputs |= {"pk": _floats(2, 2, past, 8), "pv": _floats(2, 2, past, 6)}
        order, outputs = [*order, "pk", "pv"], ["y", "present_k", "present_v"]
    while not order[-1]:
        order.pop()
    model = one_node_model("Attention", inputs, {}, order=order, outputs=outputs, opset=23, is_causal=causal)
    expected = ReferenceEvaluator(model).run(None, inputs)
    for ours, theirs in zip(export_and_run(model, inputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    targets = {str(node.target) for node in export_onnx(model).graph.nodes}
    assert "aten.scaled_dot_product_attention.default" in targets


@pytest.mark.parametrize(
    "op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
)
@pytest.mark.parametrize("axes", [None, [1], [0, -1]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(op: str, axes: list[int] | None, keepdims: int) -> None:
    inputs = {"x": _floats(3, 4, 5)}
    constants = {} if axes is None else {"axes": np.array(axes)}
    model = one_node_model(op, inputs, constants, order=["x", *constants], opset=18, keepdims=keepdims)
    assert_like_runtime(model, inputs)
    if op != "ReduceSum":
        attributes = {} if axes is None else {"axes": axes}
        model = one_node_model(op, inputs, {}, order=["x"], opset=11, keepdims=keepdims, **attributes)
        assert_like_runtime(model, inputs)


@pytest.mark.parametrize("op", ["ReduceLogSum", "ReduceLogSumExp"])
def test_reductions_in_logarithms(op: str) -> None:
    inputs = {"x": np.abs(_floats(3, 4, 5)) + 0.1}
    assert_like_runtime(one_node_model(op, inputs, {"a": np.array([1])}, order=["x", "a"], opset=18), inputs)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_index_of_an_extreme_among_equals(op: str, last: int) -> None:
    inputs = {"x": np.array([[1, 3, 3, 1], [2, 2, 2, 2]], np.float32)}
    assert_like_runtime(one_node_model(op, inputs, {}, order=["x"], axis=1, select_last_index=last), inputs)


def test_nothing_is_reduced_where_empty_axes_mean_nothing() -> None:
    inputs = {"x": _floats(3, 4)}
    constants = {"axes": np.array([], np.int64)}
    for op in ("ReduceSum", "ReduceSumSquare", "ReduceL1"):
        model = one_node_model(op, inputs, constants, order=["x", "axes"], opset=18, noop_with_empty_axes=1)
        (y,) = export_and_run(model, inputs)
        x = inputs["x"]
        expected = {"ReduceSum": x, "ReduceSumSquare": x * x, "ReduceL1": np.abs(x)}[op]
        np.testing.assert_array_equal(y, expected)


def test_einsum_and_affine_grid() -> None:
    inputs = {"a": _floats(2, 3, 4), "b": _floats(2, 4, 5)}
    assert_like_runtime(one_node_model("Einsum", inputs, {}, order=["a", "b"], equation="bij, bjk -> bik"), inputs)
    theta = {"theta": _floats(2, 2, 3)}
    model = one_node_model("AffineGrid", theta, {"size": np.array([2, 3, 4, 5])}, order=["theta", "size"], opset=20)
    (expected,) = ReferenceEvaluator(model).run(None, theta)
    np.testing.assert_allclose(export_and_run(model, theta)[0], expected, rtol=1e-5, atol=1e-6)
