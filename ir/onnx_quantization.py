"""ONNX forms of quantization operators whose scale and zero point are tensors, for which torch's exporter has none.

Where bounds are found for a whole tensor as uint8, ONNX has an operator with the same formula, DynamicQuantizeLinear;
else they are written out. ONNX divides by a scale where torch multiplies by its reciprocal, so codes differ by one
where the quotient is a tie to within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import ir, opset18
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

_Q = torch.ops.quantized_decomposed

op: Any = opset18

_FLOAT, _DOUBLE, _INT64, _UINT8 = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.UINT8


def _choose_qparams(x: Any, low: int, high: int, eps: float, dtype: int) -> tuple[Any, Any]:
    if (low, high, dtype) == (0, 255, _UINT8):
        _, scale, zero = op.DynamicQuantizeLinear(x)
    else:
        least, largest = _bounds(x, None)
        steps = op.Div(op.Sub(largest, least), _number(high - low))
        scale = op.Max(steps, _number(eps))
        zero = op.Clip(op.Sub(_number(low), op.Round(op.Div(least, scale))), _number(low), _number(high))
    one = op.Constant(value_ints=[1])
    return op.Cast(op.Reshape(scale, one), to=_DOUBLE), op.Cast(op.Reshape(zero, one), to=_INT64)


def _choose_qparams_per_token_asymmetric(x: Any, dtype: int) -> tuple[Any, Any]:
    low, high = -128, 127
    least, largest = _bounds(x, [-1])
    scale = op.Max(op.Div(op.Sub(largest, least), _number(high - low)), _number(torch.finfo(torch.float32).eps))
    left, right = op.Div(least, scale), op.Div(largest, scale)
    errors = op.Add(op.Add(_number(low), left), op.Add(_number(high), right))
    zero = op.Where(op.Greater(errors, _number(0)), op.Sub(_number(low), left), op.Sub(_number(high), right))
    zero = op.Round(op.Clip(zero, _number(low), _number(high)))
    return op.Cast(scale, to=_DOUBLE), op.Cast(zero, to=_INT64)


def _quantize_per_tensor(x: Any, scale: Any, zero: Any, low: int, high: int, dtype: int) -> Any:
    found = _found_by(scale)
    if found is not None and found is _found_by(zero) and found.inputs[0] is x:
        return found.outputs[0]
    codes = op.QuantizeLinear(x, *_scalars(scale, zero, dtype))
    if (low, high) == {_UINT8: (0, 255), ir.DataType.INT8: (-128, 127)}.get(ir.DataType(dtype)):
        return codes
    ends = (op.Cast(op.Constant(value_int=end), to=dtype) for end in (low, high))
    return op.Clip(codes, *ends)


def _dequantize_per_tensor(
    x: Any, scale: Any, zero: Any, low: int, high: int, dtype: int, out_dtype: int | None = None
) -> Any:
    real = op.DequantizeLinear(x, *_scalars(scale, zero, dtype))
    return real if out_dtype in (None, -1, _FLOAT) else op.Cast(real, to=out_dtype)


def _quantize_per_token(x: Any, scales: Any, zeros: Any, low: int, high: int, dtype: int) -> Any:
    steps = op.Round(op.Add(op.Div(x, op.Cast(scales, to=_FLOAT)), op.Cast(zeros, to=_FLOAT)))
    return op.Cast(op.Clip(steps, _number(low), _number(high)), to=dtype)


def _dequantize_per_token(x: Any, scales: Any, zeros: Any, low: int, high: int, dtype: int, output_dtype: int) -> Any:
    steps = op.Sub(op.Cast(x, to=_FLOAT), op.Cast(zeros, to=_FLOAT))
    real = op.Mul(steps, op.Cast(scales, to=_FLOAT))
    return real if output_dtype == _FLOAT else op.Cast(real, to=output_dtype)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    _Q.choose_qparams.tensor: _choose_qparams,
    _Q.choose_qparams_per_token_asymmetric.default: _choose_qparams_per_token_asymmetric,
    _Q.quantize_per_tensor.tensor: _quantize_per_tensor,
    _Q.dequantize_per_tensor.tensor: _dequantize_per_tensor,
    _Q.quantize_per_token.default: _quantize_per_token,
    _Q.dequantize_per_token.default: _dequantize_per_token,
}
"""For the exporter, by overload."""


def _number(value: float) -> Any:
    return op.Constant(value_float=float(value))


def _bounds(x: Any, axes: list[int] | None) -> tuple[Any, Any]:
    """The least and largest value, zero among them, of all of a tensor or along some axes, which stay."""
    along = () if axes is None else (op.Constant(value_ints=axes),)
    keepdims = int(axes is not None)
    least, largest = (reduce(x, *along, keepdims=keepdims) for reduce in (op.ReduceMin, op.ReduceMax))
    return op.Min(least, _number(0)), op.Max(largest, _number(0))


def _scalars(scale: Any, zero: Any, dtype: int) -> tuple[Any, Any]:
    """Scale and zero point as ONNX takes them: of rank 0, float32 and the dtype of the codes."""
    found = _found_by(scale)
    if found is not None and found is _found_by(zero) and dtype == _UINT8:
        return found.outputs[1], found.outputs[2]
    return op.Cast(op.Squeeze(scale), to=_FLOAT), op.Cast(op.Squeeze(zero), to=dtype)


def _found_by(parameter: Any) -> Any:
    """The DynamicQuantizeLinear that gave a scale or zero point; None if something else did."""
    node = parameter.producer()
    while node is not None and node.op_type in ("Cast", "Reshape"):
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "DynamicQuantizeLinear" else None
