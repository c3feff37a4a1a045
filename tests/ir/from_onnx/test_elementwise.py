"""Arithmetic, logic, casts and running sums against ONNX Runtime and the operators' definitions."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from tests.ir.from_onnx.runtime import assert_like_runtime, export_and_run, one_node_model


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow"])
@pytest.mark.parametrize("constant", [None, "a", "b"])
def test_arithmetic_broadcasts_and_takes_constants_on_either_side(op: str, constant: str | None) -> None:
    values = {"a": np.abs(_floats(3, 1, 5)) + 0.5, "b": np.abs(_floats(7, 1)) + 0.5}
    inputs = {name: array for name, array in values.items() if name != constant}
    constants = {name: array for name, array in values.items() if name == constant}
    model = one_node_model(op, inputs, constants, order=["a", "b"])
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Mod"])
@pytest.mark.parametrize("scalar_first", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.int64])
def test_a_one_element_constant_keeps_the_type(op: str, scalar_first: bool, dtype: type) -> None:
    x = np.array([[5, 7, 8], [2, 3, 9]], dtype)
    attributes = {"fmod": 1} if op == "Mod" and dtype in (np.float32, np.float64, np.float16) else {}
    order = ["c", "x"] if scalar_first else ["x", "c"]
    model = one_node_model(op, {"x": x}, {"c": np.array([3], dtype)}, order=order, **attributes)
    (y,) = export_and_run(model, {"x": x})
    left, right = (np.array(3, dtype), x) if scalar_first else (x, np.array(3, dtype))
    functions = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Pow": np.power, "Mod": np.mod}
    divide = np.floor_divide if np.issubdtype(dtype, np.integer) else np.divide
    expected = functions.get(op, divide)(left, right)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=1e-3 if dtype is np.float16 else 1e-6)


def test_integer_division_cuts_off_and_mod_takes_the_divisors_sign() -> None:
    a, b = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    inputs = {"a": a, "b": b}
    (quotient,) = export_and_run(one_node_model("Div", inputs, {}, order=["a", "b"]), inputs)
    (remainder,) = export_and_run(one_node_model("Mod", inputs, {}, order=["a", "b"]), inputs)
    (fmod,) = export_and_run(one_node_model("Mod", inputs, {}, order=["a", "b"], fmod=1), inputs)
    assert quotient.tolist() == [3, -3, -3, 3]
    assert remainder.tolist() == [1, 1, -1, -1]
    assert fmod.tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("op", ["Add", "Mul", "Max", "BitwiseXor"])
def test_unsigned_types_that_torch_hardly_knows(op: str, dtype: type) -> None:
    a, b = np.array([1, 2, 40000], dtype), np.array([3, 30000, 5], dtype)
    inputs = {"a": a, "b": b}
    (y,) = export_and_run(one_node_model(op, inputs, {}, order=["a", "b"], opset=18), inputs)
    function = {"Add": np.add, "Mul": np.multiply, "Max": np.maximum, "BitwiseXor": np.bitwise_xor}[op]
    assert y.dtype == dtype
    assert y.tolist() == function(a, b).tolist()


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_shifts_take_in_zeros(direction: str, dtype: type) -> None:
    bits = np.iinfo(dtype).bits
    x, amount = np.array([2 ** (bits - 1) + 6, 5, 1], dtype), np.array([1, 2, 0], dtype)
    inputs = {"x": x, "n": amount}
    (y,) = export_and_run(one_node_model("BitShift", inputs, {}, order=["x", "n"], direction=direction), inputs)
    expected = np.left_shift(x, amount) if direction == "LEFT" else np.right_shift(x, amount)
    assert y.tolist() == expected.tolist()


@pytest.mark.parametrize("bounds", [("low", "high"), ("low", ""), ("", "high"), ("", "")])
@pytest.mark.parametrize("known", [True, False])
def test_clip_with_either_bound_known_or_not(bounds: tuple[str, str], known: bool) -> None:
    x = {"x": _floats(5, 3) * 2}
    limits = {"low": np.array(-0.5, np.float32), "high": np.array(0.75, np.float32)}
    limits = {name: value for name, value in limits.items() if name in bounds}
    order = ["x", *bounds]
    while not order[-1]:
        order.pop()
    inputs = x if known else {**x, **limits}
    assert_like_runtime(one_node_model("Clip", inputs, limits if known else {}, order=order), inputs)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums(exclusive: int, reverse: int) -> None:
    inputs = {"x": _floats(3, 5, 2)}
    model = one_node_model(
        "CumSum", inputs, {"axis": np.array(-2)}, order=["x", "axis"], exclusive=exclusive, reverse=reverse
    )
    assert_like_runtime(model, inputs)


@pytest.mark.parametrize(
    ("trans_a", "trans_b", "alpha", "beta", "bias"),
    [
        (0, 1, 1.0, 1.0, (4,)),
        (0, 0, 1.0, 1.0, (4,)),
        (1, 0, 0.5, 1.0, (3, 1)),
        (1, 1, 2.0, 0.25, (1, 4)),
        (0, 1, 2.0, 1.0, None),
    ],
)
def test_gemm(trans_a: int, trans_b: int, alpha: float, beta: float, bias: tuple[int, ...] | None) -> None:
    inputs = {"a": _floats(5, 3) if trans_a else _floats(3, 5)}
    constants = {"b": _floats(4, 5) if trans_b else _floats(5, 4)}
    if bias is not None:
        constants["c"] = _floats(*bias)
    attributes = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta}
    order = ["a", "b"] + ["c"] * (bias is not None)
    assert_like_runtime(one_node_model("Gemm", inputs, constants, order=order, **attributes), inputs)


def test_float_to_integer_cuts_off_and_to_bool_asks_for_not_zero() -> None:
    inputs = {"x": np.array([-1.9, -0.5, 0.0, 0.4, 2.9], np.float32)}
    (whole,) = export_and_run(one_node_model("Cast", inputs, {}, order=["x"], to=TensorProto.INT32), inputs)
    (truth,) = export_and_run(one_node_model("Cast", inputs, {}, order=["x"], to=TensorProto.BOOL), inputs)
    assert whole.tolist() == [-1, 0, 0, 0, 2]
    assert truth.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz),
    ],
)
@pytest.mark.parametrize("saturate", [0, 1])
def test_eight_bit_floats_saturate_or_overflow(to: int, kind: type, saturate: int) -> None:
    finite = np.array([0.0, 0.3, -1.7, 100.0, 224.0, 1e-9], np.float32)
    inputs = {"x": np.concatenate([finite, np.array([1e6, -1e6, np.inf, np.nan], np.float32)])}
    (y,) = export_and_run(one_node_model("Cast", inputs, {}, order=["x"], opset=21, to=to, saturate=saturate), inputs)
    assert y.dtype == kind
    numbers = y.astype(np.float32)
    np.testing.assert_array_equal(numbers[:6], finite.astype(kind).astype(np.float32))
    largest = float(ml_dtypes.finfo(kind).max)
    if saturate:
        assert numbers[6:9].tolist() == [largest, -largest, largest]
    else:
        assert not np.isfinite(numbers[6:9]).any()
    assert np.isnan(numbers[9])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_goes_through(dtype: type) -> None:
    inputs = {"x": np.array([[0.5, -1.25], [3.0, 0.0]], dtype)}
    weight = np.array([[1.0, 2.0], [-1.0, 0.5]], dtype)
    model = one_node_model("MatMul", inputs, {"w": weight}, order=["x", "w"])
    (y,) = export_and_run(model, inputs)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float64), inputs["x"].astype(np.float64) @ weight.astype(np.float64))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...]) -> None:
    inputs = {"x": np.full(shape, 0.25, np.float32)}
    for op in ("Relu", "Sigmoid", "Neg", "Identity", "Shape"):
        assert_like_runtime(one_node_model(op, inputs, {}, order=["x"]), inputs)


def test_where_and_comparisons() -> None:
    inputs = {"a": _floats(4, 5), "b": _floats(5)}
    for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"):
        assert_like_runtime(one_node_model(op, inputs, {}, order=["a", "b"]), inputs)
    inputs = {"c": inputs["a"] > 0, **inputs}
    assert_like_runtime(one_node_model("Where", inputs, {}, order=["c", "a", "b"]), inputs)


def test_the_type_of_the_exponent_does_not_change_the_base() -> None:
    x = np.array([1, 2, 3], np.int32)
    model = one_node_model("Pow", {"x": x}, {"e": np.array(2.0, np.float32)}, order=["x", "e"])
    (y,) = export_and_run(model, {"x": x})
    assert y.dtype == np.int32
    assert y.tolist() == [1, 4, 9]


def test_a_number_is_written_into_the_graph_not_kept_as_a_weight() -> None:
    from shave.ir.from_onnx import export_onnx

    model = one_node_model("Mul", {"x": _floats(2, 3)}, {"c": np.array(0.5, np.float32)}, order=["x", "c"])
    program = export_onnx(model)
    (node,) = [node for node in program.graph.nodes if node.op == "call_function"]
    assert node.args[1] == 0.5
