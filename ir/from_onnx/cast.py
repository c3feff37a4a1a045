"""Conversions between element types."""

from __future__ import annotations

import onnx
import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, torch_dtype

# Types that torch stores in a wider one: (bits, signed).
_NARROW: dict[int, tuple[int, bool]] = {
    onnx.TensorProto.INT4: (4, True),
    onnx.TensorProto.UINT4: (4, False),
    onnx.TensorProto.INT2: (2, True),
    onnx.TensorProto.UINT2: (2, False),
}
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)

# The magnitudes of a 4-bit float (1 sign, 2 exponent, 1 mantissa bit), and the borders between them. The index of a
# magnitude is its code, so a tie goes to the even index.
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@onnx_op("Cast")
def cast(node: OnnxNode, x: Tensor) -> Value:
    """To another element type; floats are cut off towards zero, and saturate on the way to 8 bits."""
    return convert(x, node.attr("to"), bool(node.attr("saturate", 1)), node.attr("round_mode", "up"))


def convert(x: Tensor, to: int, saturate: bool = True, round_mode: str = "up") -> Tensor:
    """Convert to an ONNX element type.

    Args:
        x: Any tensor.
        to: The element type, as ``onnx.TensorProto`` numbers it.
        saturate: For 8-bit floats: whether what is too large becomes the largest number (else NaN or infinity).
        round_mode: For powers of two (float8_e8m0): ``up``, ``down`` or ``nearest``.
    """
    dtype = torch_dtype(to)
    if to == onnx.TensorProto.FLOAT4E2M1:
        return _to_float4(x)
    if to in _NARROW:
        bits, signed = _NARROW[to]
        return _wrapped(x.to(torch.int32), bits, signed).to(dtype)
    if x.dtype == dtype:
        return x
    if to == onnx.TensorProto.FLOAT8E8M0:
        return _to_power_of_two(x.to(torch.float32), round_mode)
    if dtype in _FLOAT8:
        wide = x.to(torch.float32)
        largest = torch.finfo(dtype).max
        return (wide.clamp(-largest, largest) if saturate else _overflow(wide, dtype)).to(dtype)
    return x.to(dtype)


def _wrapped(x: Tensor, bits: int, signed: bool) -> Tensor:
    """The low bits of integers, read as a number of so many bits."""
    half = 2 ** (bits - 1)
    return torch.remainder(x + half, 2 * half) - half if signed else torch.remainder(x, 2 * half)


def _overflow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Infinity stays for the one format that has it and is not a number in the others."""
    if dtype is torch.float8_e5m2:
        return x
    # torch saturates in this one format: what lies beyond half a step above its largest number, 448, is too large.
    too_large = x.abs() > 464 if dtype is torch.float8_e4m3fn else torch.isinf(x)
    return torch.where(too_large, torch.nan, x)


def _to_float4(x: Tensor) -> Tensor:
    """The nearest 4-bit float, stored in float32."""
    wide = x.to(torch.float32)
    magnitudes = torch.tensor(_FLOAT4)
    borders = (magnitudes[1:] + magnitudes[:-1]) / 2
    below, above = torch.bucketize(wide.abs(), borders), torch.bucketize(wide.abs(), borders, right=True)
    code = torch.where(below % 2 == 0, below, above)
    return torch.copysign(magnitudes[code], wide)


def _to_power_of_two(x: Tensor, round_mode: str) -> Tensor:
    """The power of two at or beside a magnitude."""
    mantissa, exponent = torch.frexp(x.abs())
    # x = mantissa * 2**exponent with mantissa in [0.5, 1): 2**(exponent - 1) is the power below.
    if round_mode == "up":
        exponent = torch.where(mantissa > 0.5, exponent, exponent - 1)
    elif round_mode == "down":
        exponent = exponent - 1
    else:
        exponent = torch.where(mantissa >= 0.75, exponent, exponent - 1)
    exponent = torch.where(x == 0, -127, exponent)
    return torch.ldexp(torch.ones_like(x), exponent.clamp(-127, 127)).to(torch.float8_e8m0fnu)


@onnx_op("BitCast")
def bit_cast(node: OnnxNode, x: Tensor) -> Value:
    """The same bits read as another type of the same size."""
    return x.view(torch_dtype(node.attr("to")))
