"""Which family of kernels computes a convolution."""

from __future__ import annotations

from types import ModuleType

from shave.backends.target import Target
from shave.backends.tvm.kernels import conv, depthwise, depthwise_dot
from shave.backends.tvm.kernels.geometry import ConvShape


def family_of(shape: ConvShape, target: Target) -> ModuleType:
    """The module of the family."""
    if depthwise_dot.applies(shape, target):
        return depthwise_dot
    return depthwise if depthwise.applies(shape) else conv
