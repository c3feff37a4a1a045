"""Axis maps of operators that move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from shave.ir.axes import terms
from shave.ir.axes.relations import Axes, AxisMap, Relations, axis
from shave.ir.axes.terms import Term
from shave.ir.ops import argument, op_name
from shave.ir.shapes import hint


def reshape(node: fx.Node, relations: Relations) -> Axes:
    """Row-major order stays: both shapes are factors of one product."""
    out = relations.fresh(node)
    relations.align(relations.of(node.args[0]), out)
    return out


def permute(node: fx.Node, relations: Relations) -> Axes:
    """The axes in another order."""
    axes = relations.of(node.args[0])
    return tuple(axes[axis(index, axes)] for index in argument(node, "dims"))


def transpose(node: fx.Node, relations: Relations) -> Axes:
    """Two axes change places."""
    axes = list(relations.of(node.args[0]))
    names = ("axis0", "axis1") if op_name(node) == "aten.swapaxes" else ("dim0", "dim1")
    one, other = (axis(argument(node, name), axes) for name in names)
    axes[one], axes[other] = axes[other], axes[one]
    return tuple(axes)


def reverse(node: fx.Node, relations: Relations) -> Axes:
    """All axes (or the two that there are) in reverse order."""
    return relations.of(node.args[0])[::-1]


def movedim(node: fx.Node, relations: Relations) -> Axes:
    """Some axes go to other places, the others keep their order."""
    axes = relations.of(node.args[0])
    source, destination = (argument(node, name) for name in ("source", "destination"))
    sources, destinations = (each if isinstance(each, (list, tuple)) else [each] for each in (source, destination))
    order = [i for i in range(len(axes)) if i not in [axis(s, axes) for s in sources]]
    for place, moved in sorted(zip([axis(d, axes) for d in destinations], sources, strict=True)):
        order.insert(place, axis(moved, axes))
    return tuple(axes[i] for i in order)


def expand(node: fx.Node, relations: Relations) -> Axes:
    """Axes of one position are repeated."""
    out = relations.fresh(node)
    relations.broadcast(out, relations.of(node.args[0]))
    return out


def repeat(node: fx.Node, relations: Relations) -> Axes:
    """Each axis is laid several times behind itself."""
    out, axes = relations.fresh(node), relations.of(node.args[0])
    padded = [Term(1)] * (len(out) - len(axes)) + list(axes)
    for result, term in zip(out, padded, strict=True):
        if term.size:
            relations.align([Term(result.size // term.size), term], [result])
    return out


def repeat_interleave(node: fx.Node, relations: Relations) -> Axes:
    """Each position is repeated in place."""
    out, axes, dim = relations.fresh(node), relations.of(node.args[0]), argument(node, "dim")
    if dim is None or not isinstance(argument(node, "repeats"), int):
        relations.fix([*out, *axes], "repeats positions")
        return out
    place = axis(dim, axes)
    for i, (result, term) in enumerate(zip(out, axes, strict=True)):
        if i == place and term.size:
            relations.align([term, Term(result.size // term.size)], [result])
        else:
            relations.unify(result, term)
    return out


def cat(node: fx.Node, relations: Relations) -> Axes:
    """Along one axis one follows the other; the other axes are equal."""
    operands = [relations.of(each) for each in argument(node, "tensors")]
    # torch skips empty vectors of rank 1 whatever the rank of the others.
    operands = [axes for axes in operands if not (len(axes) == 1 and axes[0].size == 0)]
    place = axis(argument(node, "dim"), operands[0])
    out = list(operands[0])
    for axes in operands[1:]:
        for i, term in enumerate(axes):
            if i != place:
                relations.unify(term, out[i])
    out[place] = terms.concatenation(axes[place] for axes in operands)
    return tuple(out)


def stack(node: fx.Node, relations: Relations) -> Axes:
    """A new axis that counts the operands, which are alike."""
    operands = [relations.of(each) for each in argument(node, "tensors")]
    for axes in operands[1:]:
        relations.unify_all(axes, operands[0])
    out = list(operands[0])
    counting = Term(len(operands))
    relations.fix([counting], "lays tensors along it")
    place = argument(node, "dim")
    out.insert(place % (len(out) + 1), counting)
    return tuple(out)


def split(node: fx.Node, relations: Relations) -> list[Axes]:
    """One axis is cut into pieces."""
    axes = relations.of(node.args[0])
    place = axis(argument(node, "dim"), axes)
    sizes = [hint(value.shape[place]) for value in node.meta["val"]]
    pieces = _pieces(axes[place], sizes, relations)
    return [(*axes[:place], piece, *axes[place + 1 :]) for piece in pieces]


def unbind(node: fx.Node, relations: Relations) -> list[Axes]:
    """Each position of one axis becomes a tensor."""
    axes = relations.of(node.args[0])
    place = axis(argument(node, "dim"), axes)
    relations.fix([axes[place]], "takes single positions of it")
    return [(*axes[:place], *axes[place + 1 :])] * axes[place].size


def select(node: fx.Node, relations: Relations) -> Axes:
    """One position of one axis."""
    axes = relations.of(node.args[0])
    place = axis(argument(node, "dim"), axes)
    relations.fix([axes[place]], "takes single positions of it")
    return (*axes[:place], *axes[place + 1 :])


def slice_(node: fx.Node, relations: Relations) -> Axes:
    """A run of positions of one axis, or every n-th."""
    axes = relations.of(node.args[0])
    place = axis(argument(node, "dim"), axes)
    term, out = axes[place], relations.fresh(node)[place]
    start, step = argument(node, "start"), argument(node, "step")
    if out.size == term.size:
        return axes
    if isinstance(start, fx.Node) or isinstance(step, fx.Node) or isinstance(argument(node, "end"), fx.Node):
        relations.fix([term, out], "takes a part that depends on sizes")
    elif step == 1:
        first = min(max((start or 0) + (term.size if (start or 0) < 0 else 0), 0), term.size)
        out = _pieces(term, [first, out.size, term.size - first - out.size], relations)[1]
    elif 0 <= (start or 0) < step and out.size * step == term.size:
        stride = Term(step)
        relations.fix([stride], "takes every n-th position")
        relations.align([out, stride], [term])
    else:
        relations.fix([term, out], "takes every n-th position")
    return (*axes[:place], out, *axes[place + 1 :])


def narrow(node: fx.Node, relations: Relations) -> Axes:
    """A run of positions of one axis."""
    axes = relations.of(node.args[0])
    place = axis(argument(node, "dim"), axes)
    start, length = argument(node, "start"), relations.fresh(node)[place].size
    term = axes[place]
    if isinstance(start, fx.Node):
        relations.fix([term], "takes a part that depends on sizes")
        return (*axes[:place], relations.fresh(node)[place], *axes[place + 1 :])
    first = start % term.size if start < 0 else start
    piece = _pieces(term, [first, length, term.size - first - length], relations)[1]
    return (*axes[:place], piece, *axes[place + 1 :])


def _pieces(term: Term, sizes: Sequence[int], relations: Relations) -> list[Term]:
    """Consecutive pieces of given sizes, empty ones included."""
    if sum(sizes) != term.size:
        relations.fix([term], "takes parts of another size")
    bounds, total = [], 0
    for size in sizes[:-1]:
        total += size
        bounds.append(total)
    if sum(sizes) != term.size:
        return [Term(size) for size in sizes]
    pieces = iter(terms.split(term, sorted({bound for bound in bounds if 0 < bound < term.size})))
    return [next(pieces) if size else Term(0) for size in sizes]


def slice_scatter(node: fx.Node, relations: Relations) -> Axes:
    """A run of positions of one axis is written over; the other axes are equal."""
    axes, source = relations.of(node.args[0]), relations.of(node.args[1])
    place = axis(argument(node, "dim"), axes)
    start, end, step = (argument(node, name) for name in ("start", "end", "step"))
    if step == 1 and not isinstance(start, fx.Node) and not isinstance(end, fx.Node):
        first, _, _ = slice(start, end).indices(axes[place].size)
        sizes = [first, source[place].size, axes[place].size - first - source[place].size]
        relations.unify(_pieces(axes[place], sizes, relations)[1], source[place])
    else:
        relations.fix([axes[place], source[place]], "writes over a part of it")
    for i, (term, other) in enumerate(zip(axes, source, strict=True)):
        if i != place:
            relations.unify(term, other)
    return axes


def select_scatter(node: fx.Node, relations: Relations) -> Axes:
    """One position of one axis is written over; the other axes are equal."""
    axes, source = relations.of(node.args[0]), relations.of(node.args[1])
    place = axis(argument(node, "dim"), axes)
    relations.fix([axes[place]], "takes single positions of it")
    relations.unify_all((*axes[:place], *axes[place + 1 :]), source)
    return axes


def flip(node: fx.Node, relations: Relations) -> Axes:
    """Some axes run backwards."""
    axes = relations.of(node.args[0])
    dims = argument(node, "dims")
    relations.fix([axes[axis(dim, axes)] for dim in dims] if dims else axes, "reorders it")
    return axes


def rot90(node: fx.Node, relations: Relations) -> Axes:
    """Two axes are turned."""
    axes, out = relations.of(node.args[0]), list(relations.fresh(node))
    turned = {axis(dim, axes) for dim in argument(node, "dims")}
    for i, term in enumerate(axes):
        if i in turned:
            relations.fix([term, out[i]], "reorders it")
        else:
            out[i] = term
    return tuple(out)


def pad(node: fx.Node, relations: Relations) -> Axes:
    """A constant is laid before and behind the last axes."""
    axes, pads = list(relations.of(node.args[0])), argument(node, "pad")
    constant = op_name(node) == "aten.constant_pad_nd" or argument(node, "mode") == "constant"
    out = relations.fresh(node)
    for i, (low, high) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        place = len(axes) - 1 - i
        if low == 0 and high == 0:
            continue
        if constant and isinstance(low, int) and isinstance(high, int) and low >= 0 and high >= 0:
            axes[place] = terms.concatenation([Term(low), axes[place], Term(high)])
        else:
            relations.fix([axes[place], out[place]], "pads it")
            axes[place] = out[place]
    return tuple(axes)


def pixel_shuffle(node: fx.Node, relations: Relations) -> Axes:
    """Channels [c, r, r] go to pixels [h, r], [w, r]."""
    *batch, channels, height, width = relations.of(node.args[0])
    *_, out, tall, wide = relations.fresh(node)
    factor = int(argument(node, "upscale_factor"))
    offsets = [Term(factor), Term(factor)]
    relations.fix([*offsets, height, width, tall, wide], "moves channels to pixels")
    relations.align([out, *offsets], [channels])
    return (*batch, out, tall, wide)


def pixel_unshuffle(node: fx.Node, relations: Relations) -> Axes:
    """Pixels [h, r], [w, r] go to channels [c, r, r]."""
    *batch, channels, height, width = relations.of(node.args[0])
    *_, out, low, narrow_ = relations.fresh(node)
    factor = int(argument(node, "downscale_factor"))
    offsets = [Term(factor), Term(factor)]
    relations.fix([*offsets, height, width, low, narrow_], "moves pixels to channels")
    relations.align([channels, *offsets], [out])
    return (*batch, out, low, narrow_)


def channel_shuffle(node: fx.Node, relations: Relations) -> Axes:
    """Channels [g, c] become [c, g]."""
    batch, channels, *space = relations.of(node.args[0])
    out = relations.fresh(node)[1]
    groups = Term(int(argument(node, "groups")))
    each = Term(channels.size // groups.size)
    relations.align([groups, each], [channels])
    relations.align([each, groups], [out])
    return (batch, out, *space)


def unfold(node: fx.Node, relations: Relations) -> Axes:
    """Windows along one axis; their positions become the last axis."""
    axes, out = relations.of(node.args[0]), list(relations.fresh(node))
    place = axis(argument(node, "dimension"), axes)
    relations.fix([axes[place], out[place], out[-1]], "slides over it")
    return (*axes[:place], out[place], *axes[place + 1 :], out[-1])


def im2col(node: fx.Node, relations: Relations) -> Axes:
    """Windows over two axes; their positions come behind the channels: [n, c * kernel, windows]."""
    *batch, channels, height, width = relations.of(node.args[0])
    out = relations.fresh(node)
    kernel = Term(out[-2].size // channels.size)
    relations.fix([height, width, kernel, out[-1]], "slides over it")
    relations.align([channels, kernel], [out[-2]])
    return (*batch, out[-2], out[-1])


def col2im(node: fx.Node, relations: Relations) -> Axes:
    """Windows are added up to an image: [n, c * kernel, windows] to [n, c, h, w]."""
    *batch, channels, windows = relations.of(node.args[0])
    *_, out, height, width = relations.fresh(node)
    kernel = Term(channels.size // out.size)
    relations.fix([windows, kernel, height, width], "slides over it")
    relations.align([out, kernel], [channels])
    return (*batch, out, height, width)


def triangle(node: fx.Node, relations: Relations) -> Axes:
    """What lies on one side of the diagonal of the last two axes."""
    axes = relations.of(node.args[0])
    relations.fix(axes[-2:], "looks at positions of it")
    return axes


def glu(node: fx.Node, relations: Relations) -> Axes:
    """One half of an axis gates the other."""
    axes = relations.of(node.args[0])
    place = axis(argument(node, "dim"), axes)
    half = axes[place].size // 2
    one, other = _pieces(axes[place], [half, half], relations)
    relations.unify(one, other)
    return (*axes[:place], one, *axes[place + 1 :])


def item(node: fx.Node, relations: Relations) -> Axes:
    """An element of a list of results."""
    source, index = node.args
    assert isinstance(source, fx.Node)
    values: Any = relations.values.get(source, ())
    return values[int(str(index))] if isinstance(values, list) else relations.fresh(node)


MAPS: dict[str, AxisMap] = {
    **dict.fromkeys(
        ("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "reshape_as", "view_as"), reshape
    ),
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("t", "numpy_T"), reverse),
    "movedim": movedim,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), split),
    "unbind": unbind,
    "select": select,
    "slice": slice_,
    "narrow": narrow,
    "slice_scatter": slice_scatter,
    "select_scatter": select_scatter,
    **dict.fromkeys(("flip", "roll"), flip),
    "rot90": rot90,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "unfold": unfold,
    "im2col": im2col,
    "col2im": col2im,
    **dict.fromkeys(("tril", "triu"), triangle),
    "glu": glu,
}
MAPS = {f"aten.{name}": axis_map for name, axis_map in MAPS.items()} | {"getitem": item}
