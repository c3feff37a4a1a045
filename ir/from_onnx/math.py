"""Elementwise mathematics, activations aside."""

from __future__ import annotations

import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value
