"""Attention in a graph: the operator, or products and a softmax written out, with the views around them.

A region runs from the product of queries and keys to the transpose that brings the heads back. Its operands are the
tensors in which queries, keys and values lie, however many views lead from there to the heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch.fx.experimental.symbolic_shapes import statically_known_true

from shave.backends.tvm.kernels.attention import AttentionShape, View
from shave.backends.tvm.regions import Region
from shave.backends.tvm.views import Strided, asking, follow, follow_rows, is_view, scaled_by
from shave.ir.ops import argument, op_name

LEAST_NEGATIVE = -1e9
"""A filler of masked scores from which on it counts as minus infinity: no score of a network survives its addition."""


@dataclass(frozen=True)
class Mask:
    """What is added to the scores: a tensor, or ``filler`` where a boolean tensor is ``hide``.

    Attributes:
        strided: The tensor, repeated to [*lead, rows, columns].
        hide: None for numbers to add; else the value of booleans that hides a score.
        filler: What is added to a hidden score.
    """

    strided: Strided
    hide: bool | None = None
    filler: float = -math.inf


@dataclass(frozen=True)
class AttentionRegion(Region):
    """The nodes of one attention.

    Attributes:
        shape: The kernel's problem, still without masks.
        sources: The tensors in which queries, keys and values lie.
        masks: What is added to the scores.
        extents: Leading extents and rows, as torch knows them (symbols where dynamic).
    """

    shape: AttentionShape | None = None
    sources: tuple[fx.Node, ...] = ()
    masks: tuple[Mask, ...] = ()
    extents: tuple[Any, ...] = ()


@dataclass
class _Scores:
    """The way from the product of queries and keys to the softmax."""

    product: fx.Node
    nodes: list[fx.Node]
    factor: float
    masks: list[tuple[Mask, torch.Size]]
    shapes: list[torch.Size]


def find_attention(graph: fx.Graph) -> dict[fx.Node, AttentionRegion]:
    """The regions of all attentions that one kernel computes, by their operator or softmax.

    Args:
        graph: Every node carries its FakeTensor.
    """
    mode = detect_fake_mode([node.meta["val"] for node in graph.nodes if "val" in node.meta])
    if mode is None:
        return {}
    finders = {
        "aten.scaled_dot_product_attention": _of_operator,
        "aten.softmax": _of_softmax,
        "aten._softmax": _of_softmax,
    }
    regions = {}
    with asking(mode):
        for node in graph.nodes:
            value = node.meta.get("val")
            find = finders.get(op_name(node)) if node.op == "call_function" else None
            if find is None or not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
                continue
            region = find(node)
            if region is not None:
                regions[node] = region
    return regions


def _of_operator(node: fx.Node) -> AttentionRegion | None:
    if argument(node, "dropout_p"):
        return None
    query, key, value = (follow_rows(cast(fx.Node, argument(node, name))) for name in ("query", "key", "value"))
    scale, mask = argument(node, "scale"), argument(node, "attn_mask")
    size = query.tensor.shape[-1]
    if scale is None and isinstance(size, int):
        scale = 1 / math.sqrt(size)
    if not isinstance(scale, (int, float)) or query.tensor.dim() < 2:
        return None
    lead, rows, columns = query.tensor.shape[:-2], query.tensor.shape[-2], key.tensor.shape[-2]
    scores = torch.Size((*lead, rows, columns))
    masks = []
    if mask is not None:
        hide = False if mask.meta["val"].dtype == torch.bool else None
        masks.append((Mask(_repeated(follow(mask), scores), hide), scores))
    causal = bool(argument(node, "is_causal"))
    way = _Scores(node, [], float(scale), masks, [scores])
    heads = query.tensor.shape[-3] if len(lead) else 1
    shared = 1
    if key.tensor.dim() > 2 and isinstance(heads, int) and isinstance(key.tensor.shape[-3], int):
        shared = heads // key.tensor.shape[-3]
    if shared > 1:
        way.shapes.append(torch.Size((*lead[:-1], heads // shared, shared, rows, columns)))
        key, value = (_shared_heads(x, shared) for x in (key, value))
    return _region(way, [node], query, key, value, causal=causal, hidden=True)


def _shared_heads(x: Strided, count: int) -> Strided:
    """[..., heads, length, size] with each head ``count`` times, without a copy: one axis more."""
    *lead, heads, length, size = x.tensor.shape
    return Strided(x.source, x.tensor.unsqueeze(-3).expand(*lead, heads, count, length, size), x.factor)


def _of_softmax(node: fx.Node) -> AttentionRegion | None:
    rank = node.meta["val"].dim()
    x = node.args[0]
    if argument(node, "dim") not in (-1, rank - 1) or not isinstance(x, fx.Node) or rank < 3:
        return None
    way = _scores(x, [node.meta["val"].shape])
    if way is None:
        return None
    behind = _product_behind(node)
    if behind is None:
        return None
    query, key = follow_rows(cast(fx.Node, way.product.args[0])), follow(cast(fx.Node, way.product.args[1]))
    key = Strided(key.source, key.tensor.transpose(-1, -2), key.factor)
    value = follow_rows(cast(fx.Node, behind[-1].args[1]))
    nodes = [*way.nodes, node, *behind]
    inside = set(nodes)
    if any(set(n.users) - inside for n in nodes[:-1]):
        return None
    return _region(way, nodes, query, key, value, causal=False, hidden=False)


def _is_product(node: fx.Node) -> bool:
    operands = node.args[:2]
    return op_name(node) in ("aten.matmul", "aten.bmm") and all(
        isinstance(a, fx.Node) and a.meta["val"].dim() >= 3 for a in operands
    )


def _keeps_matrices(node: fx.Node) -> bool:
    """Whether a view only changes the leading axes."""
    if not is_view(node) or op_name(node) not in ("aten.reshape", "aten.view", "aten.expand", "aten.unsqueeze"):
        return False
    before, after = cast(fx.Node, node.args[0]).meta["val"].shape, node.meta["val"].shape
    same = before.numel() == after.numel()
    return len(before) >= 2 and len(after) >= 2 and bool(before[-2:] == after[-2:]) and bool(same)


def _scores(node: fx.Node, shapes: list[torch.Size]) -> _Scores | None:
    """Follow scores back to the product of queries and keys; ``shapes`` are those seen so far."""
    if node.op != "call_function":
        return None
    value = node.meta["val"]
    if _is_product(node):
        return _Scores(node, [node], 1.0, [], [*shapes, value.shape])
    number = scaled_by(node)
    if number is not None or _keeps_matrices(node):
        way = _scores(cast(fx.Node, node.args[0]), [*shapes, value.shape])
        if way is None or (way.masks and number not in (None, 1.0)):
            return None
        way.factor *= 1.0 if number is None else number
        way.nodes.append(node)
        return way
    masked = _masked(node)
    if masked is None:
        return None
    for before, mask, hide, filler in masked:
        way = _scores(before, [*shapes, value.shape]) if before.meta["val"].shape == value.shape else None
        if way is not None:
            way.masks.append((Mask(_repeated(follow(mask), value.shape), hide, filler), value.shape))
            way.nodes.append(node)
            return way
    return None


def _masked(node: fx.Node) -> list[tuple[fx.Node, fx.Node, bool | None, float]] | None:
    """(scores, mask, value that hides, filler) of an operator that may apply a mask; a sum can be read in two ways."""
    args = node.args
    floats = all(isinstance(a, fx.Node) and a.meta["val"].dtype == torch.float32 for a in args[:2])
    if op_name(node) == "aten.add" and argument(node, "alpha") == 1 and floats:
        a, b = cast("tuple[fx.Node, fx.Node]", args[:2])
        return [(a, b, None, 0.0), (b, a, None, 0.0)]
    if op_name(node) == "aten.masked_fill" and isinstance(args[2], (int, float)) and args[2] <= LEAST_NEGATIVE:
        return [(cast(fx.Node, args[0]), cast(fx.Node, args[1]), True, float(args[2]))]
    return None


def _product_behind(softmax: fx.Node) -> list[fx.Node] | None:
    """The nodes from the softmax to the product of weights and values."""
    nodes: list[fx.Node] = []
    node = softmax
    while len(node.users) == 1:
        (reader,) = node.users
        if reader.op == "call_function" and _is_product(reader):
            return [*nodes, reader] if reader.args[0] is node and reader.args[1] is not node else None
        if reader.op != "call_function" or not _keeps_matrices(reader):
            return None
        nodes.append(reader)
        node = reader
    return None


def _repeated(x: Strided, shape: Sequence[Any]) -> Strided:
    return Strided(x.source, x.tensor.expand(shape), x.factor)


def _region(
    way: _Scores, nodes: list[fx.Node], query: Strided, key: Strided, value: Strided, causal: bool, hidden: bool
) -> AttentionRegion | None:
    """The region, if every operand is a matrix with contiguous rows for each of the finest leading axes."""
    finest = max(way.shapes, key=len)
    lead, (rows, columns) = finest[:-2], finest[-2:]
    size, width = query.tensor.shape[-1], value.tensor.shape[-1]
    if not all(isinstance(n, int) for n in (size, width)):
        return None
    end, behind, order = _end(nodes[-1])
    try:
        product = way.product.meta["val"].shape[:-2] if way.nodes else way.shapes[0][:-2]
        operands = [
            _as_matrices(x, product, lead, shape)
            for x, shape in ((query, (rows, size)), (key, (columns, size)), (value, (columns, width)))
        ]
        masks = [
            Mask(Strided(m.strided.source, m.strided.tensor.view(finest), m.strided.factor), m.hide, m.filler)
            for m, _ in way.masks
        ]
        made = torch.empty(end.meta["val"].shape).permute([order.index(axis) for axis in range(len(order))])
        result = made.view(*lead, rows, width)
    except RuntimeError:  # the view of a chain cannot be split into the leading axes without a copy
        return None
    kept = [axis for axis, extent in enumerate(lead) if not (isinstance(extent, int) and extent == 1)]
    extents = [lead[axis] for axis in kept] or [1]
    views = []
    for tensor, length in [*((o.tensor, o.tensor.shape[-2]) for o in operands), (result, rows)]:
        view = _view(tensor, kept, extents, length)
        if view is None:
            return None
        views.append(view)
    shape = AttentionShape(
        lead=tuple(_known(extent) for extent in extents),
        rows=_known(rows),
        columns=_known(columns),
        size=size,
        width=width,
        scale=way.factor * query.factor * key.factor,
        query=views[0],
        key=views[1],
        value=views[2],
        result=views[3],
        causal=causal,
        hidden=hidden,
    )
    if value.factor != 1 or (masks and shape.columns is None) or any(m.strided.factor != 1 for m in masks):
        return None
    if shape.columns is None and _columns_axis(operands[1], columns, views[1]) is None:
        return None
    masks = [Mask(Strided(m.strided.source, _only(m.strided.tensor, kept)), m.hide, m.filler) for m in masks]
    sources = tuple(operand.source for operand in operands)
    return AttentionRegion((*nodes, *behind), (), (), None, shape, sources, tuple(masks), (*extents, rows))


def _as_matrices(x: Strided, product: Sequence[Any], lead: Sequence[Any], matrix: tuple[Any, Any]) -> Strided:
    """An operand of a batched product, repeated to the product's leading axes and split into the finest ones."""
    tensor = x.tensor
    if tensor.dim() <= len(product) + 2:
        tensor = tensor.expand(*product, *matrix)
    return Strided(x.source, tensor.view(*lead, *matrix), x.factor)


def _end(last: fx.Node) -> tuple[fx.Node, list[fx.Node], list[int]]:
    """The last permutation behind a node that one chain reads; the nodes up to it, and what it does to the axes."""
    order = list(range(last.meta["val"].dim()))
    best: tuple[fx.Node, list[fx.Node], list[int]] = (last, [], order)
    nodes: list[fx.Node] = []
    node = last
    while len(node.users) == 1:
        (reader,) = node.users
        moved = _permutation(reader)
        if moved is None:
            break
        nodes.append(reader)
        order = [order[axis] for axis in moved]
        if moved != sorted(moved):
            best = (reader, list(nodes), order)
        node = reader
    return best


def _permutation(node: fx.Node) -> list[int] | None:
    """Result axis d is axis permutation[d] of the argument; None for anything but a permutation."""
    if node.op != "call_function" or not is_view(node):
        return None
    rank = cast(fx.Node, node.args[0]).meta["val"].dim()
    order = list(range(rank))
    name = op_name(node)
    if name == "aten.permute":
        return [d % rank for d in cast("list[int]", node.args[1])]
    if name in ("aten.transpose", "aten.swapaxes"):
        a, b = (cast(int, d) % rank for d in node.args[1:3])
        order[a], order[b] = order[b], order[a]
        return order
    same = node.meta["val"].shape == cast(fx.Node, node.args[0]).meta["val"].shape
    return order if name in ("aten.reshape", "aten.view") and same else None


def _only(tensor: torch.Tensor, kept: Sequence[int]) -> torch.Tensor:
    """[*lead, rows, columns] with the leading axes that are kept, or one of extent 1."""
    lead = range(tensor.dim() - 2)
    index = tuple(slice(None) if axis in kept else 0 for axis in lead)
    picked = tensor[index] if len(index) else tensor
    return picked if kept else picked.unsqueeze(0)


def _view(tensor: torch.Tensor, kept: Sequence[int], extents: Sequence[Any], length: Any) -> View | None:
    """Steps of [*lead, length, size]; None where they are no numbers and not those of rows one after another."""
    *steps, row, inner = _only(tensor, kept).stride()
    start = tensor.storage_offset()
    if not isinstance(row, int) or not isinstance(start, int):
        return None
    if not (isinstance(inner, int) and inner == 1) and tensor.shape[-1] != 1:
        return None
    inside = length * row
    lead: list[int | None] = []
    for step, extent in zip(reversed(steps), reversed(extents), strict=True):
        if isinstance(step, int):
            lead.append(step)
            continue
        if not statically_known_true(step == inside):
            return None
        lead.append(None)
        inside = inside * extent
    return View(tuple(reversed(lead)), row, start)


def _columns_axis(key: Strided, columns: Any, view: View) -> int | None:
    """The axis of the keys' tensor that runs over columns, if what lies inside of it is one row."""
    shape = key.source.meta["val"].shape
    for axis, extent in enumerate(shape):
        inside = math.prod(shape[axis + 1 :])
        if statically_known_true(extent == columns) and statically_known_true(inside == view.row):
            return axis
    return None


def _known(extent: Any) -> int | None:
    return extent if isinstance(extent, int) else None
