"""Random numbers.

Each run draws anew from torch's generator. The seed of a node is not used: ONNX leaves open which numbers follow from
it, and a seed fixed in the graph would make every run draw the same ones. ``torch.manual_seed`` makes the reference
backend repeatable.
"""

import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import torch_dtype

_FLOAT = 1  # TensorProto.FLOAT


@onnx_op("RandomNormal", opaque=True)
def random_normal(node: OnnxNode) -> Tensor:
    """Normal numbers of a given shape."""
    drawn: Tensor = torch.randn(node.attr("shape"), dtype=torch_dtype(node.attr("dtype", _FLOAT)))
    return drawn * float(node.attr("scale", 1.0)) + float(node.attr("mean", 0.0))


@onnx_op("RandomNormalLike", opaque=True)
def random_normal_like(node: OnnxNode, like: Tensor) -> Tensor:
    """Normal numbers of another tensor's shape."""
    drawn = torch.randn_like(like, dtype=_dtype_like(node, like))
    return drawn * float(node.attr("scale", 1.0)) + float(node.attr("mean", 0.0))


@onnx_op("RandomUniform", opaque=True)
def random_uniform(node: OnnxNode) -> Tensor:
    """Uniform numbers in [low, high) of a given shape."""
    low, high = float(node.attr("low", 0.0)), float(node.attr("high", 1.0))
    return torch.rand(node.attr("shape"), dtype=torch_dtype(node.attr("dtype", _FLOAT))) * (high - low) + low


@onnx_op("RandomUniformLike", opaque=True)
def random_uniform_like(node: OnnxNode, like: Tensor) -> Tensor:
    """Uniform numbers in [low, high) of another tensor's shape."""
    low, high = float(node.attr("low", 0.0)), float(node.attr("high", 1.0))
    return torch.rand_like(like, dtype=_dtype_like(node, like)) * (high - low) + low


@onnx_op("Bernoulli", since=15, opaque=True)
def bernoulli(node: OnnxNode, probability: Tensor) -> Tensor:
    """One with the given probability, else zero."""
    ones = torch.rand_like(probability) < probability
    return ones.to(torch_dtype(node.attr("dtype")) if node.attr("dtype") else probability.dtype)


@onnx_op("Multinomial", since=7, opaque=True)
def multinomial(node: OnnxNode, log_probabilities: Tensor) -> Tensor:
    """Class indices drawn, with repetition, from unnormalised log probabilities (batch, classes)."""
    drawn = torch.multinomial(torch.softmax(log_probabilities, -1), node.attr("sample_size", 1), replacement=True)
    return drawn.to(torch_dtype(node.attr("dtype", 6)))  # TensorProto.INT32


def _dtype_like(node: OnnxNode, like: Tensor) -> torch.dtype:
    return torch_dtype(node.attr("dtype")) if node.attr("dtype") else like.dtype
