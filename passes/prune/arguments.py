"""Constants of calls that follow when axes get shorter: shapes, pieces, numbers of groups, scales."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from shave.ir.axes.analysis import Layout
from shave.ir.axes.terms import Term
from shave.ir.ops import argument, op_name
from shave.ir.rewrite import Rewriter
from shave.ir.shapes import hint

aten = torch.ops.aten


class Lengths:
    """Which positions stay along every axis.

    Attributes:
        layout: Of the program before the cut.
        kept: For each atom that is cut, a mask of the units that stay.
    """

    def __init__(self, layout: Layout, kept: Mapping[Term, NDArray[np.bool_]]) -> None:
        self.layout = layout
        self.kept = kept
        self._masks: dict[Term, NDArray[np.bool_] | None] = {}

    def changed(self, term: Term) -> bool:
        """Whether positions of an axis go."""
        return self._mask(term.root) is not None

    def mask(self, term: Term) -> NDArray[np.bool_]:
        """Which positions of an axis stay, [size]."""
        mask = self._mask(term.root)
        return np.ones(term.size, dtype=bool) if mask is None else mask

    def size(self, term: Term) -> int:
        """Number of positions that stay."""
        mask = self._mask(term.root)
        return term.size if mask is None else int(mask.sum())

    def _mask(self, term: Term) -> NDArray[np.bool_] | None:
        if term not in self._masks:
            mask = None
            for atom, index in self.layout.positions(term).items():
                if atom in self.kept:
                    mask = np.ones(term.size, dtype=bool) if mask is None else mask
                    mask[index[~self.kept[atom]].reshape(-1)] = False
            self._masks[term] = mask
        return self._masks[term]

    def axes(self, value: Any) -> tuple[Term, ...]:
        """The terms of a value before the cut; of the first, if it is a list."""
        return self.layout.axes.get(value, ()) if isinstance(value, fx.Node) else ()


Rule = Callable[[fx.Node, Lengths, Rewriter], None]


def adapt(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    """Change those constants of a call that depend on the lengths of its axes."""
    rule = _RULES.get(op_name(node))
    if rule is not None:
        rule(node, lengths, rewriter)


def _set(node: fx.Node, name: str, value: Any) -> None:
    """Change an argument by its name."""
    for position, parameter in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if parameter.name == name:
            if parameter.kwarg_only or position > len(node.args) or name in node.kwargs:
                node.kwargs = {**node.kwargs, name: value}
            else:
                node.args = (*node.args[:position], value, *node.args[position + 1 :])


def _resized(size: Any, term: Term, node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> Any:
    """A size that was written down, after the cut; a dynamic one is scaled."""
    if not lengths.changed(term):
        return size
    if isinstance(size, fx.Node):
        ratio = Fraction(lengths.size(term), term.size)
        scaled = rewriter.call(operator.mul, (size, ratio.numerator), before=node, sources=[node])
        return rewriter.call(operator.floordiv, (scaled, ratio.denominator), before=node, sources=[node])
    return size if size < 0 else lengths.size(term)


def _sizes(name: str, first: str = "") -> Rule:
    """Makes the rule of an argument that lists sizes of the result's axes, from the axis that ``first`` tells on."""

    def rule(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
        sizes, axes = list(argument(node, name)), lengths.axes(node)
        start = argument(node, first) % len(lengths.axes(node.args[0])) if first else 0
        axes = axes[start : start + len(sizes)]
        if any(map(lengths.changed, axes)):
            _set(node, name, [_resized(s, t, node, lengths, rewriter) for s, t in zip(sizes, axes, strict=True)])

    return rule


def _repeats(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    name = "repeats" if op_name(node) == "aten.repeat" else "dims"
    counts, axes, out = list(argument(node, name)), lengths.axes(node.args[0]), lengths.axes(node)
    counts = [1] * (len(axes) - len(counts)) + counts  # tile may name the last axes alone
    for back in range(1, len(axes) + 1):
        if lengths.changed(out[-back]) and not isinstance(counts[-back], fx.Node):
            counts[-back] = lengths.size(out[-back]) // lengths.size(axes[-back])
    for back in range(len(axes) + 1, len(out) + 1):
        counts[-back] = _resized(counts[-back], out[-back], node, lengths, rewriter)
    _set(node, name, counts)


def _repeats_in_place(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    axes, dim, count = lengths.axes(node.args[0]), argument(node, "dim"), argument(node, "repeats")
    if dim is None or not isinstance(count, int):
        return
    before, after = axes[dim % len(axes)], lengths.axes(node)[dim % len(axes)]
    if lengths.changed(after):
        _set(node, "repeats", lengths.size(after) // lengths.size(before))
        _set(node, "output_size", None)


def _pieces(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    """Equal pieces may become unequal ones."""
    axes = lengths.axes(node.args[0])
    place = argument(node, "dim") % len(axes)
    if lengths.changed(axes[place]):
        mask, bounds = lengths.mask(axes[place]), [0]
        for value in node.meta["val"]:
            bounds.append(bounds[-1] + hint(value.shape[place]))
        sizes = [int(mask[start:end].sum()) for start, end in pairwise(bounds)]
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (node.args[0], sizes, place), {}


def _run(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    """``slice``, ``slice_scatter`` and ``narrow``: where the run begins and ends."""
    axes = lengths.axes(node.args[0])
    place = argument(node, "dim") % len(axes)
    if not lengths.changed(axes[place]):
        return
    mask, start = lengths.mask(axes[place]), argument(node, "start") or 0
    if op_name(node) == "aten.narrow":
        end = start + argument(node, "length")
        _set(node, "start", int(mask[:start].sum()))
        _set(node, "length", int(mask[start:end].sum()))
    elif argument(node, "step") == 1:
        first, last, _ = slice(start, argument(node, "end")).indices(len(mask))
        _set(node, "start", int(mask[:first].sum()))
        _set(node, "end", int(mask[: max(first, last)].sum()))
    else:  # every n-th position, to the end
        _set(node, "end", int(mask.sum()))


def _pads(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    out, axes, pads = lengths.axes(node), lengths.axes(node.args[0]), list(argument(node, "pad"))
    for i in range(len(pads) // 2):
        term, inside = out[-1 - i], axes[-1 - i]
        if lengths.changed(term) and (pads[2 * i] or pads[2 * i + 1]):
            mask, low = lengths.mask(term), pads[2 * i]
            pads[2 * i] = int(mask[:low].sum())
            pads[2 * i + 1] = int(mask[low + inside.size :].sum())
    _set(node, "pad", pads)


def _groups(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    """As many groups as there are input (of a transposed one: output) channels per second axis of the weight."""
    if argument(node, "groups") == 1:
        return
    data, weight = lengths.axes(argument(node, "input")), lengths.axes(argument(node, "weight"))
    name = op_name(node)
    transposed = "transpose" in name or (name == "aten.convolution" and argument(node, "transposed"))
    channels = (lengths.axes(node) if transposed else data)[len(data) - len(weight) + 1]
    _set(node, "groups", lengths.size(channels) // lengths.size(weight[1]))


def _counted(name: str) -> Rule:
    """Makes the rule of an argument that tells in how many equal runs axis 1 lies."""

    def rule(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
        channels = lengths.axes(node.args[0])[1]
        if lengths.changed(channels):
            runs = lengths.mask(channels).reshape(argument(node, name), -1)
            _set(node, name, int(runs.any(axis=1).sum()))

    return rule


def _native_group_norm(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    _counted("group")(node, lengths, rewriter)
    _set(node, "C", lengths.size(lengths.axes(node.args[0])[1]))


def _normalized_shape(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    shape, axes = list(argument(node, "normalized_shape")), lengths.axes(node.args[0])
    inner: Sequence[Term] = axes[len(axes) - len(shape) :]
    if any(map(lengths.changed, inner)):
        _set(node, "normalized_shape", [lengths.size(term) for term in inner])


def _scale(node: fx.Node, lengths: Lengths, rewriter: Rewriter) -> None:
    """The scale of the scores is a constant of the trained model: with fewer dims in a head it stays what it was."""
    dims = lengths.axes(argument(node, "query"))[-1]
    if lengths.changed(dims) and argument(node, "scale") is None:
        _set(node, "scale", dims.size**-0.5)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("reshape", "view"), _sizes("shape")),
    "unflatten": _sizes("sizes", first="dim"),
    **dict.fromkeys(("expand", "broadcast_to", "full", "zeros", "ones", "empty"), _sizes("size")),
    **dict.fromkeys(("new_full", "new_zeros", "new_ones", "new_empty"), _sizes("size")),
    **dict.fromkeys(("repeat", "tile"), _repeats),
    "repeat_interleave": _repeats_in_place,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _pieces),
    **dict.fromkeys(("slice", "slice_scatter", "narrow"), _run),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pads),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _groups),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _groups),
    "channel_shuffle": _counted("groups"),
    "group_norm": _counted("num_groups"),
    "native_group_norm": _native_group_norm,
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), _normalized_shape),
    "scaled_dot_product_attention": _scale,
}
_RULES = {f"aten.{name}": rule for name, rule in _RULES.items()}
