"""The cut: channels are taken out of weights, and the constants of the graph follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from shave.ir.axes.analysis import Layout, analyse
from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.ir.rewrite import as_trainable
from shave.passes.prune.arguments import Lengths, adapt
from shave.passes.prune.groups import Group, groups_of
from shave.passes.suggest import nearest


def cut(program: Program, keep: Mapping[str, Sequence[int]], by: str) -> None:
    """Cut several groups at once, in place.

    Args:
        program: What to cut; clones keep their weights.
        keep: For each group to cut, by name, the units that stay (sorted).
        by: The pass that does it.

    Raises:
        PipelineError: A name is not that of a group (the nearest are offered), the group may not be cut, or the units
            are not some of the group's.
    """
    layout = analyse(program)
    groups, atoms = groups_of(program, layout)
    by_name = {group.name: group for group in groups}
    masks = {name: _checked(name, units, by_name) for name, units in keep.items()}
    lengths = Lengths(layout, {atoms[name]: mask for name, mask in masks.items()})
    with program.rewrite(by=by) as rewriter:
        for node in program.graph.find_nodes(op="get_attr"):
            if node in layout.axes and any(lengths.changed(term) for term in layout.axes[node]):
                tensor = _cut_weight(program.weight(node), layout, node, lengths)
                fresh = rewriter.weight(str(node.target), tensor, sources=[node])
                layout.axes[fresh] = layout.axes[node]
                rewriter.replace(node, fresh)
        for node in program.calls:
            adapt(node, lengths, rewriter)
        rewriter.infer_all()


def _checked(name: str, units: Sequence[int], groups: Mapping[str, Group]) -> NDArray[np.bool_]:
    """A mask of the units that stay."""
    group = groups.get(name)
    if group is None:
        raise PipelineError(f"there is no group {name!r} in this program{nearest(name, groups)}")
    if group.reason:
        raise PipelineError(f"group {name!r} may not be cut: {group.reason}")
    chosen = np.asarray(units, dtype=np.int64)
    if not len(chosen):
        raise PipelineError(f"group {name!r}: all of its {group.units} {group.kind} would go; keep at least one")
    if chosen.min() < 0 or chosen.max() >= group.units or (np.diff(chosen) <= 0).any():
        raise PipelineError(f"group {name!r}: what to keep must be ascending numbers from 0 to {group.units - 1}")
    mask = np.zeros(group.units, dtype=bool)
    mask[chosen] = True
    return mask


def _cut_weight(weight: torch.Tensor, layout: Layout, node: torch.fx.Node, lengths: Lengths) -> torch.Tensor:
    cut = weight.detach()
    for axis, term in enumerate(layout.axes[node]):
        if lengths.changed(term):
            cut = cut.index_select(axis, torch.from_numpy(np.flatnonzero(lengths.mask(term))))
    return as_trainable(cut, weight)
