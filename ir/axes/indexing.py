"""Axis maps of operators that look values up at positions that are data."""

from __future__ import annotations

from torch import fx

from shave.ir.axes.relations import Axes, AxisMap, Relations, axis
from shave.ir.ops import argument


def embedding(node: fx.Node, relations: Relations) -> Axes:
    """Rows of a table."""
    table, indices = relations.argument(node, "weight"), relations.argument(node, "indices")
    relations.fix(table[:1], "looks positions up")
    return (*indices, *table[1:])


def index(node: fx.Node, relations: Relations) -> Axes:
    """NumPy's advanced indexing: axes with indices give way to the axes of the indices."""
    axes, out, indices = relations.of(node.args[0]), relations.fresh(node), argument(node, "indices")
    places = [i for i, each in enumerate(indices) if each is not None]
    masks = [each for each in indices if each is not None and "bool" in str(each.meta["val"].dtype)]
    if masks:
        relations.fix([*axes, *out], "picks positions by a mask")
        return out
    relations.fix([axes[i] for i in places], "looks positions up")
    rank = len(out) - (len(axes) - len(places))
    first = places[0] if places == list(range(places[0], places[0] + len(places))) else 0
    looked_up = out[first : first + rank]
    relations.broadcast(looked_up, *(relations.of(indices[i]) for i in places))
    others = [term for i, term in enumerate(axes) if i not in places]
    return (*others[:first], *looked_up, *others[first:])


def index_select(node: fx.Node, relations: Relations) -> Axes:
    """Positions of one axis."""
    axes, chosen = relations.of(node.args[0]), relations.argument(node, "index")
    place = axis(argument(node, "dim"), axes)
    relations.fix([axes[place], *chosen], "looks positions up")
    out = relations.fresh(node)[place]
    relations.fix([out], "looks positions up")
    return (*axes[:place], out, *axes[place + 1 :])


def gather(node: fx.Node, relations: Relations) -> Axes:
    """Element by element along one axis; the others are equal where they are of equal size."""
    axes, positions = relations.of(node.args[0]), relations.argument(node, "index")
    place = axis(argument(node, "dim"), axes)
    relations.fix([axes[place], positions[place]], "looks positions up")
    for i, (term, position) in enumerate(zip(axes, positions, strict=True)):
        if i != place:
            relations.unify(term, position)
    return positions


def sample(node: fx.Node, relations: Relations) -> Axes:
    """``grid_sampler``: channels stay, pixels are looked up."""
    axes, grid, out = relations.of(node.args[0]), relations.of(node.args[1]), relations.fresh(node)
    relations.fix([*axes[2:], *grid[1:], *out[2:]], "samples it")
    relations.unify(axes[0], grid[0])
    return (*axes[:2], *out[2:])


MAPS: dict[str, AxisMap] = {
    "aten.embedding": embedding,
    "aten.index": index,
    "aten.index_select": index_select,
    "aten.gather": gather,
    "aten.grid_sampler": sample,
    "aten.grid_sampler_2d": sample,
}
