"""Quantization operators, written in the words of torch's quantization ecosystem.

``quantized_decomposed.quantize_* / dequantize_*`` carry every affine case with one scale per tensor or per channel;
values of 2 and 4 bits live in int8 and uint8 tensors with their own range. Blocked scales and float8 are plain torch,
since no such op covers them.

The fused ONNX operators become patterns that integer kernels recognise: QLinearConv and QLinearMatMul are dequantize,
float op, quantize; ConvInteger and MatMulInteger are int32 convolution and product of the zero-centred inputs, exact
as ONNX demands.
"""

from math import prod
from typing import cast

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

from shave.ir.dtypes import dtype_name
from shave.ir.from_onnx.convolution import convolve
from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_tensor, is_host, torch_dtype

_Q = torch.ops.quantized_decomposed

# ONNX name of a quantized integer type -> (torch dtype that holds it, smallest value, largest value)
_INTEGERS: dict[str, tuple[torch.dtype, int, int]] = {
    "int8": (torch.int8, -128, 127),
    "uint8": (torch.uint8, 0, 255),
    "int16": (torch.int16, -(2**15), 2**15 - 1),
    "uint16": (torch.uint16, 0, 2**16 - 1),
    "int32": (torch.int32, -(2**31), 2**31 - 1),
    "int4": (torch.int8, -8, 7),
    "uint4": (torch.uint8, 0, 15),
    "int2": (torch.int8, -2, 1),
    "uint2": (torch.uint8, 0, 3),
}


@onnx_op("QuantizeLinear", since=7, opaque=True)
def quantize_linear(node: OnnxNode, x: Tensor, scale: Value, zero_point: Value | None = None) -> Tensor:
    """Real values to quantized ones: round to even, per tensor, per axis or per block.

    The division happens in float32 whatever ``precision`` says, which is at least as exact.
    """
    output_dtype = node.attr("output_dtype", 0)
    if output_dtype:
        kind = onnx.helper.tensor_dtype_to_np_dtype(output_dtype).name
    else:
        kind = "uint8" if zero_point is None else _kind(zero_point)
    block = node.attr("block_size", 0)
    if kind.startswith("float8"):
        divisor = _spread(as_tensor(scale), x, node.attr("axis", 1), block)
        return _to_float8(x / divisor, getattr(torch, kind), bool(node.attr("saturate", 1)))
    if kind not in _INTEGERS:
        raise ValueError(f"quantizing to {kind} is not supported")
    return _quantize(x, scale, zero_point, kind, node.attr("axis", 1), block)


@onnx_op("DequantizeLinear", since=7, opaque=True)
def dequantize_linear(node: OnnxNode, x: Value, scale: Value, zero_point: Value | None = None) -> Tensor:
    """Quantized values to real ones, (x - zero_point) * scale, per tensor, per axis or per block."""
    output_dtype = node.attr("output_dtype", 0)
    out = torch_dtype(output_dtype) if output_dtype else getattr(torch, _kind(scale))
    real = _dequantize(x, scale, zero_point, node.attr("axis", 1), node.attr("block_size", 0))
    return real if real.dtype == out else real.to(out)


@onnx_op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(node: OnnxNode, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantization to uint8 with the scale and zero point that the tensor's own range asks for."""
    smallest, largest = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    span = largest - smallest
    scale = torch.where(span == 0, 1.0, span) / 255
    zero_point = torch.round((-smallest / scale).clamp(0, 255)).to(torch.uint8)
    return _quantize(x, scale, zero_point, "uint8", 0, 0), scale, zero_point


@onnx_op("QLinearConv", since=10)
def qlinear_conv(
    node: OnnxNode,
    x: Value,
    x_scale: Value,
    x_zero_point: Value,
    w: Value,
    w_scale: Value,
    w_zero_point: Value,
    y_scale: Value,
    y_zero_point: Value,
    bias: Value | None = None,
) -> Tensor:
    """Quantized convolution as dequantize, convolution, quantize."""
    real_bias = None
    if bias is not None:
        # The int32 bias has the scale of the products, one per output channel where the weight's scale has.
        bias_scale = (
            x_scale * w_scale if is_host(x_scale) and is_host(w_scale) else as_tensor(x_scale) * as_tensor(w_scale)
        )
        real_bias = _dequantize(bias, bias_scale, None, 0, 0)
    real = convolve(
        node, _dequantize(x, x_scale, x_zero_point, 1, 0), _dequantize(w, w_scale, w_zero_point, 0, 0), real_bias
    )
    return _quantize(real, y_scale, y_zero_point, _kind(y_zero_point), 1, 0)


@onnx_op("QLinearMatMul", since=10)
def qlinear_matmul(
    node: OnnxNode,
    a: Value,
    a_scale: Value,
    a_zero_point: Value,
    b: Value,
    b_scale: Value,
    b_zero_point: Value,
    y_scale: Value,
    y_zero_point: Value,
) -> Tensor:
    """Quantized product as dequantize, product, quantize; scales go by tensor, row of ``a`` or column of ``b``."""
    real = torch.matmul(_dequantize(a, a_scale, a_zero_point, -2, 0), _dequantize(b, b_scale, b_zero_point, -1, 0))
    return _quantize(real, y_scale, y_zero_point, _kind(y_zero_point), -2, 0)


@onnx_op("ConvInteger", since=10)
def conv_integer(
    node: OnnxNode, x: Value, w: Value, x_zero_point: Value | None = None, w_zero_point: Value | None = None
) -> Tensor:
    """Convolution of 8-bit integers into int32; padding is the zero point, hence zero after centring."""
    return convolve(node, _centred(x, x_zero_point, 0), _centred(w, w_zero_point, 0), None)


@onnx_op("MatMulInteger", since=10)
def matmul_integer(
    node: OnnxNode, a: Value, b: Value, a_zero_point: Value | None = None, b_zero_point: Value | None = None
) -> Tensor:
    """Product of 8-bit integers into int32; zero points may go by row of ``a`` and by column of ``b``."""
    product: Tensor = torch.matmul(_centred(a, a_zero_point, -2), _centred(b, b_zero_point, -1))
    return product


def _kind(values: Value) -> str:
    """NumPy's name of the dtype; a traced tensor cannot tell 2 and 4 bits from 8."""
    return dtype_name(values.dtype) if isinstance(values, Tensor) else values.dtype.name


def _is_scalar(values: Value) -> bool:
    return bool(np.prod(values.shape, dtype=np.int64) == 1)


def _quantize(x: Tensor, scale: Value, zero_point: Value | None, kind: str, axis: int, block: int) -> Tensor:
    _check(scale, zero_point, kind)
    dtype, low, high = _INTEGERS[kind]
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        x = x.to(torch.float32)
    # Torch's ops multiply by the reciprocal, which within rounding of a tie can end one step off. That is how static
    # quantization works in torch; a scale computed at run time is divided by, as ONNX says.
    if is_host(scale) and is_host(zero_point) and not block:
        if _is_scalar(scale):
            return cast(Tensor, _Q.quantize_per_tensor(x, *_numbers(scale, zero_point), low, high, dtype))
        if len(scale.shape) == 1:
            scales, zeros = _parameters(scale, zero_point)
            return cast(Tensor, _Q.quantize_per_channel(x, scales, zeros, axis % x.ndim, low, high, dtype))
    scales, zeros = (_spread(values, x, axis, block) for values in _parameters(scale, zero_point))
    return torch.clamp(torch.round(x / scales) + zeros, low, high).to(dtype)


def _dequantize(x: Value, scale: Value, zero_point: Value | None, axis: int, block: int) -> Tensor:
    kind, q = _kind(x), as_tensor(x)
    if kind not in _INTEGERS:
        return q.to(torch.float32) * _spread(_cast(scale, torch.float32), q, axis, block)
    _check(scale, zero_point, kind)
    dtype, low, high = _INTEGERS[kind]
    if _is_scalar(scale) and not block:
        if is_host(scale) and is_host(zero_point):
            return cast(Tensor, _Q.dequantize_per_tensor(q, *_numbers(scale, zero_point), low, high, dtype))
        scales, zeros = _parameters(scale, zero_point)
        return cast(Tensor, _Q.dequantize_per_tensor.tensor(q, scales, zeros, low, high, dtype))
    if len(scale.shape) == 1 and not block:
        scales, zeros = _parameters(scale, zero_point)
        if dtype == torch.uint16:  # torch cannot subtract in uint16
            q, dtype = q.to(torch.int32), torch.int32
        return cast(Tensor, _Q.dequantize_per_channel(q, scales, zeros, axis % q.ndim, low, high, dtype))
    scales, zeros = (_spread(values, q, axis, block) for values in _parameters(scale, zero_point))
    return (q.to(torch.float32) - zeros) * scales


def _check(scale: Value, zero_point: Value | None, kind: str) -> None:
    """Refuse a scale or zero point that stands for no mapping of reals onto integers of a kind.

    Raises:
        ValueError: Says what is wrong with which of the two.
    """
    if _kind(scale) not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"its scale is of type {_kind(scale)}, but has to be a float")
    if is_host(scale):
        values = np.asarray(scale).astype(np.float64).ravel()
        wrong = values[~(np.isfinite(values) & (values > 0))]
        if wrong.size:
            raise ValueError(f"its scale is {wrong[0]:g}, but has to be finite and above 0")
    if zero_point is None:
        return
    holds = _INTEGERS.get(_kind(zero_point))
    if holds is None or holds[0] is not _INTEGERS[kind][0]:  # where traced, 2 and 4 bits are 8
        raise ValueError(f"its zero point is of type {_kind(zero_point)}, but the integers are of type {kind}")
    given, wanted = (prod(map(int, each.shape)) for each in (zero_point, scale))
    if given != wanted:
        raise ValueError(f"it has {given} zero points for {wanted} scales")


def _numbers(scale: Value, zero_point: Value | None) -> tuple[float, int]:
    """Scale and zero point as the Python numbers of the per-tensor ops."""
    zero = 0 if zero_point is None else int(np.asarray(zero_point).item())
    return float(np.asarray(scale).item()), zero


def _parameters(scale: Value, zero_point: Value | None) -> tuple[Tensor, Tensor]:
    """Scale and zero point as float32 and int64 tensors, the dtypes of the per-channel ops."""
    if zero_point is None:
        zero_point = np.zeros([int(size) for size in scale.shape], np.int64)
    return _cast(scale, torch.float32), _cast(zero_point, torch.int64)


def _cast(values: Value, dtype: torch.dtype) -> Tensor:
    """The values in another dtype; known ones are converted here and now, so that the graph holds no conversion."""
    if isinstance(values, Tensor):
        return values if values.dtype == dtype else values.to(dtype)
    return as_tensor(values if values.dtype == dtype_name(dtype) else values.astype(dtype_name(dtype)))


def _spread(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points, repeated or reshaped so that they broadcast against ``x``."""
    if values.numel() == 1 and not block:
        return values.squeeze()
    if block:
        axis %= x.ndim
        repeated = values.unsqueeze(axis + 1).expand(*values.shape[: axis + 1], block, *values.shape[axis + 1 :])
        return repeated.flatten(axis, axis + 1).narrow(axis, 0, x.shape[axis])
    if values.ndim == 1:
        shape = [1] * x.ndim
        shape[axis] = values.shape[0]
        return values.reshape(shape)
    return values


def _to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    if saturate:
        limit = torch.finfo(dtype).max
        x = x.clamp(-limit, limit)
    return x.to(dtype)


def _centred(q: Value, zero_point: Value | None, axis: int) -> Tensor:
    """The integers minus their zero point, as int32."""
    wide = as_tensor(q).to(torch.int32)
    return wide if zero_point is None else wide - _spread(_cast(zero_point, torch.int32), wide, axis, 0)
