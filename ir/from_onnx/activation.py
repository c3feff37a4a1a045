"""Activation functions, softmax and what belongs to it, dropout."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shave.ir.from_onnx.math import register_unary
from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_number, is_host

register_unary("Relu", torch.relu)
register_unary("Sigmoid", torch.sigmoid)
register_unary("Softplus", F.softplus)
register_unary("Softsign", F.softsign)
register_unary("HardSwish", F.hardswish)
register_unary("Mish", F.mish)


@onnx_op("Elu")
def elu(node: OnnxNode, x: Tensor) -> Value:
    """Exponential linear unit."""
    return F.elu(x, node.attr("alpha", 1.0))


@onnx_op("Celu")
def celu(node: OnnxNode, x: Tensor) -> Value:
    """Continuously differentiable exponential linear unit."""
    return F.celu(x, node.attr("alpha", 1.0))


@onnx_op("Selu")
def selu(node: OnnxNode, x: Tensor) -> Value:
    """Scaled exponential linear unit."""
    alpha: float = node.attr("alpha", 1.67326319217681884765625)
    gamma: float = node.attr("gamma", 1.05070102214813232421875)
    return F.elu(x, alpha) * gamma


@onnx_op("LeakyRelu")
def leaky_relu(node: OnnxNode, x: Tensor) -> Value:
    """Negative values shrunk by a factor."""
    return F.leaky_relu(x, node.attr("alpha", 0.01))


@onnx_op("ThresholdedRelu")
def thresholded_relu(node: OnnxNode, x: Tensor) -> Value:
    """Zero up to a threshold."""
    return F.threshold(x, node.attr("alpha", 1.0), 0.0)


@onnx_op("PRelu")
def prelu(node: OnnxNode, x: Tensor, slope: Tensor) -> Value:
    """Negative values times a learned slope, per channel or broadcast."""
    if slope.ndim == x.ndim - 1 and x.ndim > 2 and slope.numel() == slope.shape[0] == x.shape[1]:
        return F.prelu(x, slope.reshape(-1))
    if node.opset < 9 and slope.ndim == 1 and x.ndim > 1 and slope.shape[0] == x.shape[1]:
        return F.prelu(x, slope)
    return torch.where(x < 0, x * slope, x)


@onnx_op("HardSigmoid")
def hard_sigmoid(node: OnnxNode, x: Tensor) -> Value:
    """A clamped line."""
    alpha, beta = node.attr("alpha", 0.2), node.attr("beta", 0.5)
    # The form of torch's own, as exporters write it in single precision.
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@onnx_op("Gelu")
def gelu(node: OnnxNode, x: Tensor) -> Value:
    """Gaussian error linear unit."""
    return F.gelu(x, approximate=node.attr("approximate", "none"))


@onnx_op("Swish")
def swish(node: OnnxNode, x: Tensor) -> Value:
    """``x * sigmoid(alpha * x)``."""
    alpha = node.attr("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


@onnx_op("Shrink")
def shrink(node: OnnxNode, x: Tensor) -> Value:
    """Zero within a band, moved towards zero outside."""
    bias, band = node.attr("bias", 0.0), node.attr("lambd", 0.5)
    moved = torch.where(x < -band, x + bias, torch.where(x > band, x - bias, torch.zeros_like(x)))
    return moved.to(x.dtype)


def _flat_from_axis(node: OnnxNode, x: Tensor) -> tuple[Tensor, int]:
    """Before version 13 all axes from ``axis`` on are one; later it is the one axis."""
    if node.opset >= 13:
        return x, node.attr("axis", -1)
    axis = node.attr("axis", 1) % x.ndim
    return (x, axis) if axis == x.ndim - 1 else (x.flatten(axis), axis)


@onnx_op("Softmax")
def softmax(node: OnnxNode, x: Tensor) -> Value:
    """Exponentials that sum to one."""
    flat, axis = _flat_from_axis(node, x)
    return F.softmax(flat, axis).reshape(x.shape) if flat is not x else F.softmax(x, axis)


@onnx_op("LogSoftmax")
def log_softmax(node: OnnxNode, x: Tensor) -> Value:
    """Logarithm of the softmax."""
    flat, axis = _flat_from_axis(node, x)
    return F.log_softmax(flat, axis).reshape(x.shape) if flat is not x else F.log_softmax(x, axis)


@onnx_op("Hardmax")
def hardmax(node: OnnxNode, x: Tensor) -> Value:
    """One where the (first) largest element is, else zero."""
    flat, axis = _flat_from_axis(node, x)
    best = torch.argmax(flat, axis, keepdim=True)
    return torch.zeros_like(flat).scatter(axis, best, 1.0).reshape(x.shape)


@onnx_op("Dropout")
def dropout(node: OnnxNode, x: Tensor, ratio: Value | None = None, training: Value | None = None) -> tuple[Value, ...]:
    """Nothing, as models are read for inference; the mask keeps everything.

    A graph that asks for training mode by a constant input does not survive as it was meant, so it is refused, unless
    its ratio is zero.
    """
    if training is not None and (not is_host(training) or as_number(training) != 0):
        dropped = 0.5 if ratio is None else as_number(ratio)
        if dropped != 0:
            raise ValueError("drops elements at random (training mode); export the model for inference")
    mask_type = x.dtype if node.opset < 10 else torch.bool
    return (x, torch.ones_like(x, dtype=mask_type)) if node.n_outputs > 1 and node.outputs[1] else (x,)
