"""Axis maps of operators that multiply and sum: convolutions, matrix products, attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from shave.ir.axes.relations import Axes, AxisMap, Relations
from shave.ir.axes.terms import Term, product
from shave.ir.ops import argument, op_name

HEADS, HEAD_DIMS, GROUPS = "heads", "head dims", "conv groups"
"""Kinds of atoms."""


def convolution(node: fx.Node, relations: Relations) -> Axes:
    """``[n, g * i] x [g * o, i] -> [n, g * o]``; transposed: ``[n, g * i] x [g * i, o] -> [n, g * o]``."""
    axes, weight, bias = (relations.argument(node, name) for name in ("input", "weight", "bias"))
    out = relations.fresh(node)
    channels = len(axes) - len(weight) + 1  # 1, or 0 for an input without a batch axis
    relations.fix([*axes[channels + 1 :], *weight[2:], *out[channels + 1 :]], "slides over it")
    name = op_name(node)
    transposed = "transpose" in name or (name == "aten.convolution" and bool(argument(node, "transposed")))
    groups = Term(int(argument(node, "groups")))
    within_in, within_out = (Term(term.size // groups.size) for term in (axes[channels], out[channels]))
    if within_in.size > 1:  # else each group is a channel
        relations.mark([groups], GROUPS)
    incoming, outgoing = (weight[0], within_out) if transposed else (within_in, weight[0])
    if transposed:
        relations.unify(within_out, weight[1])
        relations.unify(incoming, product([groups, within_in]))
    else:
        relations.unify(within_in, weight[1])
        relations.unify(outgoing, product([groups, within_out]))
    relations.unify(axes[channels], product([groups, within_in]))
    relations.unify(out[channels], product([groups, within_out]))
    if bias:
        relations.unify(bias[0], out[channels])
    return (*axes[:channels], out[channels], *out[channels + 1 :])


def linear(node: fx.Node, relations: Relations) -> Axes:
    """``[..., i] x [o, i] -> [..., o]``."""
    axes, weight, bias = (relations.argument(node, name) for name in ("input", "weight", "bias"))
    relations.unify(axes[-1], weight[-1])
    if bias:
        relations.broadcast(weight[:-1], bias)
    return (*axes[:-1], *weight[:-1])


def matmul(node: fx.Node, relations: Relations) -> Axes:
    """``[..., m, k] x [..., k, n] -> [..., m, n]``, with the rules of torch for vectors and for batch axes."""
    left, right = (relations.of(each) for each in node.args[:2])
    out = relations.fresh(node)
    return _product(node, node.args[0], node.args[1], left, right, out, relations)


def addmm(node: fx.Node, relations: Relations) -> Axes:
    """A matrix product plus what is broadcast to it."""
    left, right = (relations.of(each) for each in node.args[1:3])
    out = _product(node, node.args[1], node.args[2], left, right, relations.fresh(node), relations)
    relations.broadcast(out, relations.of(node.args[0]))
    return out


def _product(
    node: fx.Node, one: object, other: object, left: Axes, right: Axes, out: Axes, relations: Relations
) -> Axes:
    contracted = left[-1], right[-2] if len(right) > 1 else right[0]
    relations.unify(*contracted)
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    batch = out[: len(out) - len(rows) - len(columns)]
    relations.broadcast(batch, left[:-2], right[:-2])
    if not relations.is_constant(one) and not relations.is_constant(other):
        relations.mark([contracted[0]], HEAD_DIMS)
        relations.mark(batch, HEADS)
    return (*batch, *rows, *columns)


def attention(node: fx.Node, relations: Relations) -> Axes:
    """``softmax(q k^T + mask) v`` for q ``[..., h, l, e]``, k ``[..., h, s, e]``, v ``[..., h, s, v]``."""
    query, key, value, mask = (relations.argument(node, name) for name in ("query", "key", "value", "attn_mask"))
    out = relations.fresh(node)
    relations.unify(query[-1], key[-1])
    relations.unify(key[-2], value[-2])
    relations.unify(out[-1], value[-1])
    relations.unify(out[-2], query[-2])
    relations.broadcast(out[:-2], query[:-2])
    if argument(node, "enable_gqa") and len(query) > 2 and query[-3].size != key[-3].size and key[-3].size:
        for each in (key, value):
            relations.broadcast(out[:-3], each[:-3])
        relations.unify(key[-3], value[-3])
        relations.align([key[-3], Term(query[-3].size // key[-3].size)], [query[-3]])
    else:
        relations.broadcast(out[:-2], key[:-2], value[:-2])
    if mask:
        relations.broadcast((*out[:-1], key[-2]), mask)
    relations.mark([query[-1], value[-1]], HEAD_DIMS)
    relations.mark(out[:-2], HEADS)
    return out


def einsum(node: fx.Node, relations: Relations) -> Axes:
    """Axes of equal letters are equal."""
    operands, out = argument(node, "tensors"), relations.fresh(node)
    labels = einsum_labels(str(argument(node, "equation")), [len(relations.of(each)) for each in operands])
    result = labels[-1]
    known: dict[str, Term] = {}
    for text, axes in zip(labels, [*map(relations.of, operands), out], strict=True):
        for letter, term in zip(text, axes, strict=True):
            if known.setdefault(letter, term).size == 1:
                known[letter] = term
            if term.size != 1:
                relations.unify(known[letter], term)
    if sum(not relations.is_constant(each) for each in operands) > 1:
        relations.mark((term for letter, term in known.items() if letter not in result), HEAD_DIMS)
        shared = set.intersection(*map(set, labels))
        relations.mark((known[letter] for letter in shared), HEADS)
    return out


def einsum_labels(equation: str, ranks: Sequence[int]) -> list[str]:
    """A letter for each axis of each operand and, last, of the result; dots are replaced by digits."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    texts = inputs.split(",")
    if not arrow:  # then the letters that occur once, in the order of the alphabet
        single = sorted(letter for letter in set(inputs) - set(",.") if inputs.count(letter) == 1)
        result = ("..." if "..." in inputs else "") + "".join(single)
    spans = [rank - len(text.replace("...", "")) for text, rank in zip(texts, ranks, strict=True)]
    digits = "0123456789"[: max((span for span, text in zip(spans, texts, strict=True) if "..." in text), default=0)]
    named = [text.replace("...", digits[len(digits) - span :]) for text, span in zip(texts, spans, strict=True)]
    return [*named, result.replace("...", digits)]


MAPS: dict[str, AxisMap] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), convolution),
    "linear": linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "scaled_dot_product_attention": attention,
    "einsum": einsum,
}
MAPS = {f"aten.{name}": axis_map for name, axis_map in MAPS.items()}
