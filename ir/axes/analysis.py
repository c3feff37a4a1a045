"""The terms of every axis in a program."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from shave.ir.axes import terms
from shave.ir.axes.relations import Axes, Relations, tensors
from shave.ir.axes.table import AXIS_MAPS
from shave.ir.axes.terms import Term
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.ir.shapes import hints


class Layout:
    """Where along which axis each set of channels lies.

    Attributes:
        axes: Terms of each value that is a tensor.
        constant: Calls that depend on weights alone, and the weights.
    """

    def __init__(self, axes: dict[fx.Node, Axes], constant: set[fx.Node]) -> None:
        self.axes = axes
        self.constant = constant
        self._positions: dict[Term, dict[Term, NDArray[np.int64]]] = {}

    def positions(self, term: Term) -> dict[Term, NDArray[np.int64]]:
        """Positions of each atom along an axis, [units, width]; see :func:`shave.ir.axes.terms.positions`."""
        term = term.root
        if term not in self._positions:
            self._positions[term] = terms.positions(term)
        return self._positions[term]


def analyse(program: Program) -> Layout:
    """Relate the axes of all values; inputs and outputs of the program are fixed."""
    relations = Relations()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            axes = relations.fresh(node)
            relations.values[node] = axes
            relations.here = f"input {node.name}"
            relations.fix(axes, "comes from outside")
        elif node.op == "get_attr":
            relations.constant.add(node)
            if isinstance(value, torch.Tensor):
                relations.values[node] = tuple(Term(size) for size in value.shape)
        elif node.op == "call_function":
            relations.enter(node)
            if node.all_input_nodes and relations.constant.issuperset(node.all_input_nodes):
                relations.constant.add(node)
            _relate(node, relations)
    for node in program.outputs:
        relations.here = "the program"
        relations.fix(relations.of(node), "gives it as an output")
    return Layout(
        {node: axes for node, axes in relations.values.items() if isinstance(axes, tuple)}, relations.constant
    )


def _relate(node: fx.Node, relations: Relations) -> None:
    axis_map = AXIS_MAPS.get(op_name(node))
    value = node.meta.get("val")
    if axis_map is not None and isinstance(value, (torch.Tensor, tuple, list)):
        relations.values[node] = axis_map(node, relations)
        return
    if axis_map is not None or not isinstance(value, (torch.Tensor, tuple, list)):
        return
    out = _fresh(value)
    relations.values[node] = out
    for each in [*map(relations.values.get, tensors(node)), out]:
        for axes in each if isinstance(each, list) else [each or ()]:
            relations.fix(axes)


def _fresh(value: Any) -> Axes | list[Axes]:
    if isinstance(value, torch.Tensor):
        return tuple(Term(size) for size in hints(value.shape))
    return [tuple(Term(size) for size in hints(each.shape)) if isinstance(each, torch.Tensor) else () for each in value]
