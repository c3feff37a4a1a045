"""Drop calls that give back what they are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.ir.shapes import same_shape
from shave.passes.base import Context, Exactness, Pass
from shave.passes.report import Report

_aten = torch.ops.aten


@dataclass(frozen=True)
class DropIdentities(Pass):
    """Drop calls that give back their argument, and join pairs of calls that one call can stand for.

    Dropout in inference; casts to the same dtype; reshapes, slices, pads, expands and permutations that change nothing;
    a concatenation or split of one piece; times or divided by one; pooling of single elements; the second of two equal
    rectifiers or roundings. Two permutations or two reshapes in a row become one. Shapes are compared for every value
    of the dynamic dimensions.
    """

    name = "drop-identities"
    exactness = Exactness.EXACT

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        with program.rewrite(by=self.name) as rewriter:
            for node in program.calls:
                rule = _RULES.get(op_name(node))
                if rule is None:
                    continue
                if not node.users:
                    report.skipped(node, "nothing reads it")
                    continue
                same = rule(node)
                if isinstance(same, fx.Node):
                    rewriter.replace(node, same)
                    report.applied(node, f"gives back {same.name}")
                elif joined := _join(rewriter, node):
                    report.applied(node, f"joined with {joined.name}")
                elif same:
                    report.skipped(node, same)
        return report


Rule = Callable[[fx.Node], "fx.Node | str"]
"""Gives the node that a call is equal to, or why it is not an identity."""


def _first(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _keeps_value(node: fx.Node) -> bool:
    """Whether shape and dtype stay, whatever the dynamic dimensions."""
    given, made = _first(node).meta["val"], node.meta["val"]
    return isinstance(made, torch.Tensor) and given.dtype == made.dtype and same_shape(given.shape, made.shape)


def _always(node: fx.Node) -> fx.Node | str:
    return _first(node)


def _same_shape(node: fx.Node) -> fx.Node | str:
    """For operators that cannot reorder elements: equal shapes are equal values."""
    return _first(node) if _keeps_value(node) else "it changes the shape"


def _cast(node: fx.Node) -> fx.Node | str:
    kept = _keeps_value(node) and _first(node).meta["val"].device == node.meta["val"].device
    return _first(node) if kept else "it changes the dtype"


def _dropout(node: fx.Node) -> fx.Node | str:
    return "it is in training mode" if argument(node, "train") else _first(node)


def _pad(node: fx.Node) -> fx.Node | str:
    return "it pads" if any(width != 0 for width in argument(node, "pad")) else _first(node)


def _permutation(node: fx.Node) -> fx.Node | str:
    order = permutation(node)
    return _first(node) if order == sorted(order) else "it reorders axes"


def _concatenation(node: fx.Node) -> fx.Node | str:
    pieces = node.args[0]
    assert isinstance(pieces, Sequence)
    if len(pieces) != 1:
        return f"it joins {len(pieces)} pieces"
    piece = pieces[0]
    assert isinstance(piece, fx.Node)
    return piece


def _item(node: fx.Node) -> fx.Node | str:
    """The lone piece of a split is what was split; taking an item of anything else is no identity to speak of."""
    whole = _first(node)
    if op_name(whole) not in _SPLITS:
        return ""
    pieces = whole.meta["val"]
    return _first(whole) if len(pieces) == 1 else f"one of {len(pieces)} pieces"


def _times_one(node: fx.Node) -> fx.Node | str:
    # A keyword is a rounding mode.
    if _is_number(node.args[1], 1) and not node.kwargs and _keeps_value(node):
        return _first(node)
    return ""


def _minus_zero(node: fx.Node) -> fx.Node | str:
    # x + -0.0 is x for every x; x + 0.0 is not, as it turns -0.0 into 0.0, unless the numbers are integers.
    if not _is_number(node.args[1], 0) or not _keeps_value(node):
        return ""
    sign = -1.0 if op_name(node) == "aten.sub" else 1.0
    addend = sign * float(argument(node, "alpha")) * float(node.args[1])  # type: ignore[arg-type]
    dtype = node.meta["val"].dtype
    exact = math.copysign(1, addend) < 0 or not (dtype.is_floating_point or dtype.is_complex)
    return _first(node) if exact else "adding zero turns -0.0 into 0.0"


def _idempotent(node: fx.Node) -> fx.Node | str:
    source = _first(node)
    # A keyword is a number of decimals, to which large numbers are not rounded the same a second time.
    return source if source.target is node.target and not node.kwargs else ""


def _pooling(node: fx.Node) -> fx.Node | str:
    """Windows of a single element, moved by one."""
    ones = all(size == 1 for size in argument(node, "kernel_size"))
    steps = argument(node, "stride")
    unmoved = (not steps or all(step == 1 for step in steps)) and not any(argument(node, "padding"))
    if not (ones and unmoved and _keeps_value(node)):
        return "its windows hold several elements, or leave some out"
    divisor = argument(node, "divisor_override") if op_name(node) in ("aten.avg_pool2d", "aten.avg_pool3d") else None
    return _first(node) if divisor in (None, 1) else f"it divides by {divisor}"


def _upsampling(node: fx.Node) -> fx.Node | str:
    # A scale near one may keep the size and yet repeat some elements and lose others.
    scales = [scale for each in node.args[2:] for scale in (each if isinstance(each, (tuple, list)) else [each])]
    unscaled = all(scale is None or scale == 1 for scale in scales)
    return _first(node) if unscaled and _keeps_value(node) else "it changes the size"


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == number


_SPLITS = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split")


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = {"getitem": _item, "aten.cat": _concatenation}
    groups: dict[str, Rule] = {
        "dropout feature_dropout": _dropout,
        "positive lift_fresh_copy": _always,
        "pad constant_pad_nd": _pad,
        "to _to_copy": _cast,
        "reshape expand slice squeeze unsqueeze flatten unflatten narrow adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d _adaptive_avg_pool2d": _same_shape,
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d": _upsampling,
        "permute transpose t": _permutation,
        "mul div": _times_one,
        "add sub": _minus_zero,
        "relu abs ceil floor round trunc sign": _idempotent,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d": _pooling,
    }
    for names, rule in groups.items():
        table.update({f"aten.{name}": rule for name in names.split()})
    return table


_RULES = _table()


def permutation(node: fx.Node) -> list[int]:
    """The order that a permute, transpose or t makes: axis i of the result is axis ``order[i]`` of the source."""
    rank = _first(node).meta["val"].dim()
    order = list(range(rank))
    if node.target is _aten.permute.default:
        return [int(axis) % rank for axis in argument(node, "dims")]
    if rank >= 2:
        first, second = (0, 1) if node.target is _aten.t.default else map(int, node.args[1:3])  # type: ignore[arg-type]
        order[first], order[second] = order[second], order[first]
    return order


def _join(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Let a permutation of a permutation, or a reshape of a reshape, read the source itself. Gives the call skipped."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_function":
        return None
    if _RULES.get(op_name(source)) is _permutation is _RULES.get(op_name(node)):
        inner, outer = permutation(source), permutation(node)
        order = [inner[axis] for axis in outer]
        target = _first(source)
        if order == sorted(order):
            rewriter.replace(node, target)
        else:
            joined = rewriter.call(_aten.permute.default, (target, order), before=node, sources=[source, node])
            rewriter.replace(node, joined)
        return source
    if source.target is _aten.reshape.default is node.target:
        target = _first(source)
        if same_shape(target.meta["val"].shape, node.meta["val"].shape):
            rewriter.replace(node, target)
        else:
            joined = rewriter.call(node.target, (target, node.args[1]), before=node, sources=[source, node])
            rewriter.replace(node, joined)
        return source
    return None
