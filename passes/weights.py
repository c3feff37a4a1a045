"""The values of weights, however a program stores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import fx

from shave.ir.program import Program


def value_of(program: Program, node: fx.Node) -> torch.Tensor:
    """A weight, unpacked if it lies as integers behind a dequantize call."""
    if node.op == "get_attr":
        return program.weight(node)
    args, kwargs = fx.map_arg((node.args, node.kwargs), program.weight)
    return cast("Callable[..., torch.Tensor]", node.target)(*args, **kwargs)
