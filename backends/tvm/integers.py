"""Bring quantized graphs to the form that integer kernels take, without a change in any value.

* Codes are uint8 and integer weights int8 without a zero point, whatever they were.
* What moves elements, or takes the largest, does so with codes: dequantize goes behind it.
* Dequantize and quantize with the same parameters cancel, and equal ones are one.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from shave.backends.tvm.quantized import (
    CHOOSE,
    CHOOSE_ROWS,
    DEQUANTIZE,
    DEQUANTIZE_CHANNELS,
    DEQUANTIZE_ROWS,
    QUANTIZE,
    QUANTIZE_ROWS,
    constant,
    dequantized,
    is_weight,
    quantized,
)
from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter

_q = torch.ops.quantized_decomposed

_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t",
        "slice", "select", "narrow", "expand", "repeat", "cat", "stack", "contiguous", "clone", "alias", "detach",
        "flip", "roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "index_select", "upsample_nearest2d",
        "max_pool1d", "max_pool2d", "max_pool3d", "constant_pad_nd", "pad", "replication_pad2d", "reflection_pad2d",
    )
)  # fmt: skip
"""Operators that give some of the elements that they are given; padding aside, in any dtype."""

_CONVERSIONS = (QUANTIZE, DEQUANTIZE, QUANTIZE_ROWS, DEQUANTIZE_ROWS, CHOOSE, CHOOSE_ROWS)


def use_integers(program: Program, rewriter: Rewriter) -> None:
    """Rewrite all of a graph; it stays as it is where nothing is quantized."""
    if not any(op_name(node) in (DEQUANTIZE, DEQUANTIZE_CHANNELS) for node in program.calls):
        return
    _merge(program, rewriter)
    for node in program.calls:
        _as_uint8(rewriter, node)
    for node in program.calls:
        _as_plain_weights(program, rewriter, node)
    for node in program.calls:
        _move_codes(rewriter, node)
    _merge(program, rewriter)
    rewriter.sweep()


def is_multiplied(node: fx.Node) -> bool:
    """Whether all that reads a dequantized weight multiplies its integers."""
    if op_name(node) not in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
        return False
    return all(is_weight(node, reader) for reader in node.users)


def _as_uint8(rewriter: Rewriter, node: fx.Node) -> None:
    """Codes of int8 that are only dequantized become uint8, 128 more."""
    if op_name(node) not in (QUANTIZE, QUANTIZE_ROWS) or argument(node, "dtype") != torch.int8:
        return
    if len(node.args) < 5:  # some go by keyword, as no exporter writes them
        return
    scale, zero, low, high = node.args[1:5]
    same = [op_name(u) in (DEQUANTIZE, DEQUANTIZE_ROWS) and u.args[1:5] == node.args[1:5] for u in node.users]
    if not isinstance(low, int) or not isinstance(high, int) or not all(same):
        return
    if isinstance(zero, fx.Node):
        zero = rewriter.call(torch.ops.aten.add.Tensor, (zero, 128), before=node, sources=[node])
    else:
        zero = cast(int, zero) + 128
    shifted = (scale, zero, low + 128, high + 128, torch.uint8)
    codes = rewriter.call(cast(Any, node.target), (node.args[0], *shifted), before=node, sources=[node])
    for user in list(node.users):
        arguments = (codes, *shifted, *user.args[6:])
        real = rewriter.call(cast(Any, user.target), arguments, user.kwargs, before=user, sources=[user])
        rewriter.replace(user, real)


def _as_plain_weights(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    """Constant integers whose distance from their zero point fits 8 bits are stored as that; permutes go into them."""
    if op_name(node) not in (DEQUANTIZE, DEQUANTIZE_CHANNELS) or cast(fx.Node, node.args[0]).op != "get_attr":
        return
    codes = cast(fx.Node, node.args[0])
    scale, zero = constant(node.args[1]), constant(0 if node.args[2] is None else node.args[2])
    if scale is None or zero is None or codes.meta["val"].dtype not in (torch.int8, torch.uint8):
        return
    axis = argument(node, "axis") % codes.meta["val"].dim() if op_name(node) == DEQUANTIZE_CHANNELS else None
    values = program.weight(codes).detach()
    centred = values.numpy().astype(np.int32) - (zero if axis is None else _along(zero, axis, values.dim()))
    if centred.min(initial=0) < -128 or centred.max(initial=0) > 127:
        return
    for reader in list(node.users):
        turned = _turn(reader, values.dim())
        if turned is not None:
            moved = torch.from_numpy(np.ascontiguousarray(centred.astype(np.int8).transpose(turned)))
            made = _dequantize_weight(rewriter, codes, moved, scale, None if axis is None else turned.index(axis), node)
            rewriter.replace(reader, made)
    if node.users and (zero.any() or codes.meta["val"].dtype != torch.int8):
        integers = torch.from_numpy(centred.astype(np.int8))
        rewriter.replace(node, _dequantize_weight(rewriter, codes, integers, scale, axis, node))


def _along(vector: np.ndarray[Any, Any], axis: int, rank: int) -> np.ndarray[Any, Any]:
    return vector.reshape([-1 if d == axis else 1 for d in range(rank)])


def _turn(node: fx.Node, rank: int) -> list[int] | None:
    """The order in which a call puts the axes of its first argument; None if it does anything else."""
    order = list(range(rank))
    name = op_name(node)
    if name == "aten.permute":
        return [d % rank for d in cast("list[int]", node.args[1])]
    if name == "aten.transpose" or (name == "aten.t" and rank == 2):
        a, b = (cast(int, d) % rank for d in node.args[1:3]) if name == "aten.transpose" else (0, 1)
        order[a], order[b] = order[b], order[a]
        return order
    return None


def _dequantize_weight(
    rewriter: Rewriter,
    codes: fx.Node,
    integers: torch.Tensor,
    scale: np.ndarray[Any, Any],
    axis: int | None,
    node: fx.Node,
) -> fx.Node:
    weight = rewriter.weight(f"{codes.target}", integers, sources=[codes])
    if axis is None:
        arguments = (weight, float(scale.reshape(())), 0, -128, 127, torch.int8)
        return rewriter.call(_q.dequantize_per_tensor.default, arguments, before=node, sources=[node])
    scales = rewriter.weight(f"{codes.target}_scales", torch.from_numpy(np.array(scale, np.float32)), sources=[codes])
    zeros = rewriter.weight(f"{codes.target}_zeros", torch.zeros(scale.size, dtype=torch.int64), sources=[codes])
    per_channel = (weight, scales, zeros, axis, -128, 127, torch.int8)
    return rewriter.call(_q.dequantize_per_channel.default, per_channel, before=node, sources=[node])


def _move_codes(rewriter: Rewriter, node: fx.Node) -> None:
    """Let a call that gives elements of its arguments give their codes."""
    if op_name(node) not in _MOVES or not isinstance(node.meta["val"], torch.Tensor):
        return
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta["val"], torch.Tensor)]
    inputs = {n: dequantized(n) for n in tensors}
    found = [codes for codes in inputs.values() if codes is not None]
    if not found or len(found) != len(tensors):
        return
    first = found[0]
    numbers = (first.scale, first.zero_point, first.low, first.high)
    if any((c.scale, c.zero_point, c.low, c.high) != numbers for c in found):
        return
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: inputs[n].node if n in inputs else n)  # type: ignore[union-attr]
    if op_name(node) in ("aten.constant_pad_nd", "aten.pad"):
        if (op_name(node) == "aten.pad" and argument(node, "mode") != "constant") or argument(node, "value"):
            return
        args, kwargs = (*args[:2], *(("constant",) if op_name(node) == "aten.pad" else ()), first.zero_point), {}
    codes = rewriter.call(cast(Any, node.target), args, kwargs, before=node, sources=[node])
    real = rewriter.call(
        _q.dequantize_per_tensor.default, (codes, *numbers, torch.uint8), before=node, sources=[tensors[0]]
    )
    rewriter.replace(node, real)


def _merge(program: Program, rewriter: Rewriter) -> None:
    """Equal conversions are one, and one that undoes another gives what that was given."""
    seen: dict[tuple[Any, ...], fx.Node] = {}
    for node in program.calls:
        item = node.target is operator.getitem and op_name(cast(fx.Node, node.args[0])) in _CONVERSIONS
        if op_name(node) not in _CONVERSIONS and not item:
            continue
        made, taken = quantized(node), dequantized(node.args[0])
        if made is not None and taken is not None:
            same = (made.scale, made.zero_point) == (taken.scale, taken.zero_point)
            if same and made.low <= taken.low and taken.high <= made.high:
                rewriter.replace(node, taken.node)
                continue
        key = (node.target, node.args, tuple(node.kwargs.items()))
        if seen.setdefault(key, node) is not node:
            rewriter.replace(node, seen[key])
