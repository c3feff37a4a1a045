"""Quantization operators against ONNX Runtime, and the ops they become."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import shave
from shave.ir.errors import ReadError
from shave.ir.from_onnx.export import export_onnx
from tests.ir.from_onnx.runtime import assert_like_runtime, export_and_run, graph_model, one_node_model, run_in_runtime

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
X = RNG.normal(scale=2, size=(2, 5, 7)).astype(np.float32)
# Powers of two: the reciprocal is exact, so torch's rounding and ONNX's agree on every value.
SCALE, SCALES = np.array(0.125, np.float32), np.exp2([-5.0, -4, -3, -2, -1]).astype(np.float32)


@pytest.fixture(autouse=True)
def _same_draws_in_any_order():
    RNG.bit_generator.state = START


def targets(model: onnx.ModelProto) -> list[str]:
    graph = export_onnx(model).graph
    return [str(n.target) for n in graph.nodes if n.op == "call_function" and "getitem" not in str(n.target)]


def draw(dtype: type, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_linear(dtype, per_channel):
    scale = SCALES if per_channel else SCALE
    zero = draw(dtype, *scale.shape)
    model = one_node_model("QuantizeLinear", {"x": X}, {"s": scale, "z": zero}, order=["x", "s", "z"], axis=1, opset=21)
    assert_like_runtime(model, {"x": X}, rtol=0, atol=0)
    kind = "channel" if per_channel else "tensor"
    assert targets(model) == [f"quantized_decomposed.quantize_per_{kind}.default"]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dequantize_linear(dtype, per_channel):
    scale = SCALES * np.float32(1.1) if per_channel else SCALE
    q, zero = draw(dtype, 2, 5, 7), draw(dtype, *scale.shape)
    if dtype == np.int32:
        q, zero = q // 2**12, zero * 0
    model = one_node_model(
        "DequantizeLinear", {"q": q}, {"s": scale, "z": zero}, order=["q", "s", "z"], axis=1, opset=21
    )
    assert_like_runtime(model, {"q": q}, rtol=1e-7)
    kind = "channel" if per_channel else "tensor"
    assert f"quantized_decomposed.dequantize_per_{kind}.default" in targets(model)


def test_constant_weights_are_not_folded_through_dequantize():
    # A float weight in the graph would hide from later stages that the file keeps integers.
    model = one_node_model("DequantizeLinear", {}, {"q": draw(np.int8, 5, 3), "s": SCALES}, order=["q", "s"], axis=0)
    assert "quantized_decomposed.dequantize_per_channel.default" in targets(model)


def test_half_precision_scale_gives_half_precision():
    q = draw(np.uint8, 4, 3)
    model = one_node_model("DequantizeLinear", {"q": q}, {"s": np.array(0.25, np.float16)}, order=["q", "s"], opset=21)
    (y,) = export_and_run(model, {"q": q})
    np.testing.assert_array_equal(y, q.astype(np.float16) * np.float16(0.25))


@pytest.mark.parametrize("low_bits", [ml_dtypes.int4, ml_dtypes.uint4])
def test_four_bits_keep_their_range(low_bits):
    zero = np.array(3, low_bits)
    model = one_node_model("QuantizeLinear", {"x": X}, {"s": SCALE, "z": zero}, order=["x", "s", "z"], opset=21)
    (y,) = export_and_run(model, {"x": X})
    info = ml_dtypes.iinfo(low_bits)
    expected = np.clip(np.rint(X / SCALE) + 3, info.min, info.max)
    assert expected.min() == info.min
    assert expected.max() == info.max
    np.testing.assert_array_equal(y, expected)


def test_four_bit_weights_are_dequantized():
    q = np.arange(-8, 7).reshape(5, 3).astype(ml_dtypes.int4)
    model = one_node_model("DequantizeLinear", {}, {"q": q, "s": SCALES}, order=["q", "s"], axis=0, opset=21)
    (y,) = export_and_run(model, {})
    np.testing.assert_allclose(y, q.astype(np.float32) * SCALES[:, None], rtol=1e-7)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocked_scales_with_a_tail(axis):
    q = draw(np.int8, 7, 5)
    blocks = {0: (3, 5), 1: (7, 2)}[axis]
    scale = RNG.uniform(0.1, 1, blocks).astype(np.float32)
    zero = draw(np.int8, *blocks)
    model = one_node_model(
        "DequantizeLinear", {"q": q}, {"s": scale, "z": zero}, order=["q", "s", "z"], axis=axis, block_size=3, opset=21
    )
    spread = lambda a: np.repeat(a, 3, axis).take(range(q.shape[axis]), axis)  # noqa: E731
    expected = (q.astype(np.float32) - spread(zero)) * spread(scale)
    np.testing.assert_allclose(export_and_run(model, {"q": q})[0], expected, rtol=1e-7)


def test_scale_computed_at_run_time_divides():
    # 0.1 has no exact reciprocal: values on a tie tell division from multiplication.
    x = (np.arange(-20, 20) * np.float32(0.05)).astype(np.float32)
    inputs = {"x": x, "s": np.array(0.1, np.float32), "z": np.array(7, np.uint8)}
    model = one_node_model("QuantizeLinear", inputs, {}, order=["x", "s", "z"])
    assert_like_runtime(model, inputs, rtol=0, atol=0)


@pytest.mark.parametrize("values", [X, np.abs(X), -np.abs(X), np.zeros((2, 3), np.float32)])
def test_dynamic_quantize_linear(values):
    model = one_node_model("DynamicQuantizeLinear", {"x": values}, {}, order=["x"], outputs=["y", "s", "z"])
    y, s, z = export_and_run(model, {"x": values})
    if values.any():
        for ours, theirs in zip((y, s, z), run_in_runtime(model, {"x": values}), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    else:
        assert not y.any()
        assert s == np.float32(1 / 255)
        assert z == 0


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"pads": [0, 1, 2, 0], "dilations": [2, 1]},
    ],
)
def test_qlinear_conv(per_channel, bias, attributes):
    x, w = draw(np.uint8, 2, 3, 9, 8), draw(np.int8, 5, 3, 3, 3)
    constants = {
        "xs": np.array(0.02, np.float32), "xz": np.array(113, np.uint8), "w": w,
        "ws": SCALES * np.float32(0.07) if per_channel else np.array(0.013, np.float32),
        "wz": np.zeros(5 if per_channel else (), np.int8), "ys": np.array(0.31, np.float32),
        "yz": np.array(97, np.uint8),
    }  # fmt: skip
    order = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    if bias:
        constants["b"] = RNG.integers(-9000, 9000, 5, dtype=np.int32)
        order.append("b")
    model = one_node_model("QLinearConv", {"x": x}, constants, order=order, **attributes)
    (ours,), (theirs,) = export_and_run(model, {"x": x}), run_in_runtime(model, {"x": x})
    steps = np.abs(ours.astype(int) - theirs)
    # Integers and float32 may round apart where a value lies on a tie.
    assert steps.max() <= 1
    assert (steps != 0).mean() < 0.002
    names = targets(model)
    assert names[-2:] == ["aten.conv2d.default", "quantized_decomposed.quantize_per_tensor.default"]
    assert len([name for name in names if "dequantize" in name]) == 2 + bias


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_qlinear_matmul(dtype):
    a, b = draw(dtype, 2, 3, 11), draw(dtype, 11, 5)
    constants = {
        "as": np.array(0.05, np.float32), "az": np.array(7, dtype), "b": b, "bs": SCALES * np.float32(0.3),
        "bz": draw(dtype, 5), "ys": np.array(0.9, np.float32), "yz": np.array(33, dtype),
    }  # fmt: skip
    order = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    model = one_node_model("QLinearMatMul", {"a": a}, constants, order=order)
    (ours,), (theirs,) = export_and_run(model, {"a": a}), run_in_runtime(model, {"a": a})
    steps = np.abs(ours.astype(int) - theirs)
    assert steps.max() <= 1
    assert (steps != 0).mean() < 0.05


@pytest.mark.parametrize("zero_points", [(), ("xz",), ("xz", "wz")])
def test_conv_integer(zero_points):
    x = draw(np.uint8, 2, 4, 7, 6)
    constants = {"w": draw(np.uint8, 6, 2, 3, 3), "xz": np.array(120, np.uint8), "wz": np.array(9, np.uint8)}
    model = one_node_model(
        "ConvInteger", {"x": x}, constants, order=["x", "w", *zero_points], group=2, pads=[1, 0, 2, 1], strides=[1, 2]
    )
    assert_like_runtime(model, {"x": x}, rtol=0, atol=0)


@pytest.mark.parametrize("zero_points", [(), ("az",), ("az", "bz")])
def test_matmul_integer_is_exact_beyond_float32(zero_points):
    a = np.full((3, 1200), 255, np.uint8) - draw(np.uint8, 3, 1200) // 64
    constants = {"b": np.full((1200, 5), 251, np.uint8), "az": np.array(1, np.uint8), "bz": draw(np.uint8, 5) // 32}
    model = one_node_model("MatMulInteger", {"a": a}, constants, order=["a", "b", *zero_points])
    (y,) = assert_like_runtime(model, {"a": a}, rtol=0, atol=0)
    assert y.max() > 2**24


def test_quantized_layer_keeps_integer_weights():
    """The usual QDQ file: quantized weight -> DequantizeLinear -> Conv, activations between Q and DQ."""
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["dx"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "ws"], ["dw"], axis=0),
        onnx.helper.make_node("Conv", ["dx", "dw"], ["y"], pads=[1, 1]),
    ]
    constants = {"w": draw(np.int8, 4, 5, 3), "ws": SCALES[:4], "xs": SCALE, "xz": np.array(-3, np.int8)}
    model = graph_model(nodes, {"x": X}, constants, ["y"])
    assert_like_runtime(model, {"x": X}, rtol=1e-5, atol=1e-5)
    weight = dict(export_onnx(model).named_buffers())["w"]
    np.testing.assert_array_equal(weight.numpy(), constants["w"])


def test_unknown_target_type_is_named():
    node = onnx.helper.make_node(
        "QuantizeLinear", ["x", "s"], ["y"], name="to_four", output_dtype=TensorProto.FLOAT4E2M1
    )
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", 1, [2])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT4E2M1, [2])], [numpy_helper.from_array(SCALE, "s")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    with pytest.raises(ReadError, match=r"node 'to_four' \(QuantizeLinear\): quantizing to float4_e2m1fn"):
        export_onnx(model)


BAD_PARAMETERS = {
    "zero point of another type": (
        SCALE,
        np.array(3, np.int8),
        "zero point is of type int8, but the integers are .* uint8",
    ),
    "zero point of no integer type": (SCALE, np.array(3, np.float32), "zero point is of type float32"),
    "scale of integers": (
        np.array(1, np.int32),
        np.array(3, np.uint8),
        "scale is of type int32, but has to be a float",
    ),
    "scale of zero": (np.array(0, np.float32), None, "scale is 0, but has to be finite and above 0"),
    "negative scale": (np.array(-0.1, np.float32), None, "scale is -0.1, but has to be finite"),
    "NaN": (np.array(np.nan, np.float32), None, "scale is nan"),
    "infinity": (np.array(np.inf, np.float32), None, "scale is inf"),
    "one of many": (np.array([0.5, 1, 0, 2, 1], np.float32), np.zeros(5, np.uint8), "scale is 0, but"),
    "zero points of another number": (SCALES, np.zeros(4, np.uint8), "it has 4 zero points for 5 scales"),
}


@pytest.mark.filterwarnings("ignore:weights hold NaN or infinity")
@pytest.mark.parametrize(("scale", "zero", "message"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS)
@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear"])
def test_parameters_that_make_no_sense_are_told_in_one_line(op, scale, zero, message, tmp_path):
    if op == "QuantizeLinear" and zero is not None and zero.dtype != np.uint8 and scale is SCALE:
        zero, message = (
            np.array(3, np.float32),
            "quantizing to float32 is not supported",
        )  # it tells what integers to take
    constants = {"s": scale} | ({} if zero is None else {"z": zero})
    given = X if op == "QuantizeLinear" else draw(np.uint8, *X.shape)
    node = onnx.helper.make_node(op, ["x", *constants], ["y"], name="the_node", axis=1)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.helper.np_dtype_to_tensor_dtype(given.dtype), X.shape)],
        [onnx.helper.make_tensor_value_info("y", 0, X.shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), tmp_path / "bad.onnx")
    with pytest.raises(ReadError, match=rf"bad.onnx.*node 'the_node' \({op}\): .*{message}") as caught:
        shave.read(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("what", ["scale", "zero point"])
def test_fused_operators_name_the_node_too(place, what):
    x, w = draw(np.uint8, 1, 3, 5, 5), draw(np.int8, 4, 3, 3, 3)
    scales = [np.array(0.1, np.float32) for _ in range(3)]
    zeros = [np.array(0, kind) for kind in (np.uint8, np.int8, np.uint8)]
    if what == "scale":
        scales[place] = np.array(-1, np.float32)
    else:
        zeros[place] = np.array(0, [np.int8, np.uint8, np.int32][place])
    if (what, place) == ("zero point", 2):
        zeros[2] = np.array(0.0, np.float32)
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    constants = dict(zip(["xs", "ws", "ys", "xz", "wz", "yz"], [*scales, *zeros], strict=True)) | {"w": w}
    model = one_node_model("QLinearConv", {"x": x}, constants, order=names)
    with pytest.raises(ReadError, match=rf"node 'the_node' \(QLinearConv\): .*{what}"):
        export_onnx(model)
