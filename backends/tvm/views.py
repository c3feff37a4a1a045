"""Views of tensors: which element of which source a chain of slices, permutations and reshapes shows.

The operators themselves answer: a chain is applied once more to a FakeTensor that stands for the contiguous source, and
the strides of what comes out say where each element lies.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from shave.ir.ops import op_name


@dataclass(frozen=True)
class Strided:
    """A tensor as elements of another one.

    Attributes:
        source: The node that computes the elements; contiguous.
        tensor: A FakeTensor whose shape, strides and offset say where in the source each element lies.
        factor: What the source's elements are multiplied by.
    """

    source: fx.Node
    tensor: torch.Tensor
    factor: float = 1.0


@contextmanager
def asking(mode: FakeTensorMode) -> Iterator[None]:
    """Ask questions about FakeTensors without a guard on what they answer."""
    guards = mode.shape_env.suppress_guards() if mode.shape_env is not None else nullcontext()
    with mode, guards, torch.no_grad():
        yield


def follow(node: fx.Node) -> Strided:
    """Follow a chain of views, and of products with numbers, up to what computes its elements; inside ``asking``."""
    chain = []
    while (before := _before(node)) is not None:
        chain.append(node)
        node = before
    source, tensor, factor = node, _contiguous(node), 1.0
    value: Any = tensor
    for link in reversed(chain):
        number = scaled_by(link)
        if number is not None:
            factor *= number
            continue
        value = _applied(link, value)
        if isinstance(value, torch.Tensor) and not _aliases(value, tensor):
            source, tensor, factor = link, _contiguous(link), 1.0
            value = tensor
    return Strided(source, value, factor)


def follow_rows(node: fx.Node) -> Strided:
    """The same, as far as the elements of a row stay neighbours; inside ``asking``."""
    followed = follow(node)
    return followed if followed.tensor.stride(-1) == 1 else Strided(node, _contiguous(node))


def scaled_by(node: fx.Node) -> float | None:
    """The number that a node multiplies its first argument by."""
    name, args = op_name(node), node.args
    if name not in ("aten.mul", "aten.div") or len(args) != 2 or node.kwargs or not isinstance(args[0], fx.Node):
        return None
    number = args[1]
    if not isinstance(number, (int, float)) or isinstance(number, bool) or args[0].meta["val"].dtype != _dtype(node):
        return None
    return float(number) if name == "aten.mul" else 1.0 / number if number else None


def is_view(node: fx.Node) -> bool:
    """Whether a call shows elements of its first argument and computes nothing."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.is_view and isinstance(node.args[0], fx.Node)


def _before(node: fx.Node) -> fx.Node | None:
    """What a link of a chain is applied to; None at the end of the chain."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        parent = cast(fx.Node, node.args[0])
        return parent if is_view(parent) else None
    if not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list)):
        return None
    return cast(fx.Node, node.args[0]) if is_view(node) or scaled_by(node) is not None else None


def _contiguous(node: fx.Node) -> torch.Tensor:
    value = node.meta["val"]
    return torch.empty(value.shape, dtype=value.dtype)


def _applied(node: fx.Node, value: Any) -> Any:
    args, kwargs = fx.map_arg((node.args[1:], node.kwargs), lambda n: n.meta["val"])
    return cast(Any, node.target)(value, *args, **kwargs)


def _aliases(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _dtype(node: fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)
