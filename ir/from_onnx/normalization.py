"""Normalisations: batch, layer, group, instance, RMS, local response, p-norm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, torch_dtype


@onnx_op("BatchNormalization")
def batch_normalization(
    node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, ...]:
    """Normalise each channel: by running statistics, or in training mode by the batch's own.

    In training mode the new running statistics are the second and third output.
    """
    epsilon, momentum = node.attr("epsilon", 1e-5), node.attr("momentum", 0.9)
    if not node.attr("training_mode", 0):
        if node.opset < 7 and not node.attr("is_test", 0):
            raise ValueError("is in training mode; export the model for inference")
        # Statistics and parameters may be of a wider type than the input.
        mean, variance, scale, bias = (
            p.to(x.dtype) if p.dtype != x.dtype else p for p in (mean, variance, scale, bias)
        )
        return (F.batch_norm(x, mean, variance, scale, bias, False, 1 - momentum, epsilon),)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    batch_mean, batch_variance = torch.mean(x, axes), torch.var(x, axes, correction=0)
    view = [1, -1] + [1] * (x.ndim - 2)
    normal = (x - batch_mean.reshape(view)) / torch.sqrt(batch_variance.reshape(view) + epsilon)
    y = normal * scale.reshape(view) + bias.reshape(view)
    return (y, mean * momentum + batch_mean * (1 - momentum), variance * momentum + batch_variance * (1 - momentum))


@onnx_op("InstanceNormalization")
def instance_normalization(node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor) -> Value:
    """Normalise each channel of each sample."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.attr("epsilon", 1e-5))


@onnx_op("GroupNormalization", since=21)
def group_normalization(node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor) -> Value:
    """Normalise groups of channels of each sample, then scale per channel."""
    return F.group_norm(x, node.attr("num_groups"), scale, bias, node.attr("epsilon", 1e-5))


@onnx_op("GroupNormalization", since=18)
def group_normalization_by_group(node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor) -> Value:
    """Normalise groups of channels of each sample, then scale per group."""
    groups = node.attr("num_groups")
    each = x.shape[1] // groups
    scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, groups, scale, bias, node.attr("epsilon", 1e-5))


@onnx_op("LayerNormalization")
def layer_normalization(node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    """Normalise over the axes from ``axis`` on; further outputs are the mean and the inverse deviation."""
    axis, epsilon = node.attr("axis", -1) % x.ndim, node.attr("epsilon", 1e-5)
    shape = list(x.shape[axis:])
    y = F.layer_norm(x, shape, _whole(scale, shape), None if bias is None else _whole(bias, shape), epsilon)
    if node.n_outputs == 1:
        return (y,)
    axes, stash = list(range(axis, x.ndim)), torch_dtype(node.attr("stash_type", 1))
    wide = x.to(stash)
    mean = torch.mean(wide, axes, keepdim=True)
    variance = torch.var(wide, axes, correction=0, keepdim=True)
    return y, mean, torch.rsqrt(variance + epsilon)


def _whole(parameter: Tensor, shape: list[int]) -> Tensor:
    """A scale or bias of exactly the normalised shape."""
    return parameter if list(parameter.shape) == shape else parameter.expand(shape)


@onnx_op("RMSNormalization")
def rms_normalization(node: OnnxNode, x: Tensor, scale: Tensor) -> Value:
    """Divide by the root mean square over the axes from ``axis`` on, computed in the stash type."""
    axis, epsilon = node.attr("axis", -1) % x.ndim, node.attr("epsilon", 1e-5)
    shape = list(x.shape[axis:])
    wide = x.to(torch_dtype(node.attr("stash_type", 1)))
    return (
        F.rms_norm(wide, shape, None, epsilon).to(x.dtype) * scale
        if wide is not x
        else F.rms_norm(x, shape, _whole(scale, shape), epsilon)
    )


@onnx_op("LRN")
def local_response(node: OnnxNode, x: Tensor) -> Value:
    """Divide by a power of the sum of squares in neighbouring channels."""
    size = node.attr("size")
    alpha, beta, bias = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)
    # An even window reaches one channel further up than down; torch's own function reaches down.
    square = (x * x).flatten(2).unsqueeze(1)
    padded = F.pad(square, (0, 0, (size - 1) // 2, size // 2))
    mean = F.avg_pool2d(padded, (size, 1), stride=1).squeeze(1).reshape(x.shape)
    return x / torch.pow(mean * alpha + bias, beta)


@onnx_op("LpNormalization")
def lp_normalization(node: OnnxNode, x: Tensor) -> Value:
    """Divide by the 1-norm or 2-norm along an axis; a zero norm gives zero."""
    norm = torch.linalg.vector_norm(x, node.attr("p", 2), node.attr("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@onnx_op("MeanVarianceNormalization")
def mean_variance_normalization(node: OnnxNode, x: Tensor) -> Value:
    """Subtract the mean and divide by the standard deviation over axes."""
    axes = node.attr("axes", [0, 2, 3])
    centred = x - torch.mean(x, axes, keepdim=True)
    deviation = torch.sqrt(torch.mean(centred * centred, axes, keepdim=True))
    return centred / (deviation + 1e-9)
