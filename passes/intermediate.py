"""Compares what is computed inside two programs, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.names import names_of
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.ir.rewrite import PROVENANCE
from shave.passes.compare import Difference, difference


@dataclass(frozen=True)
class NodeDifference:
    """How far the value of a node is from that of the node it stands for.

    Attributes:
        reference: Name of the node in the program from before.
        node: Name of the node in the program from after.
        names: All names under which a user may know it.
        op: Its operator.
        difference: Between the two values.
    """

    reference: str
    node: str
    names: tuple[str, ...]
    op: str
    difference: Difference


def compare_nodes(before: Program, after: Program, inputs: Sequence[torch.Tensor]) -> list[NodeDifference]:
    """Run two programs on the same inputs and compare the values of nodes that stand for each other.

    Args:
        before: The program that a pass was given.
        after: What the pass made of it.
        inputs: One input tuple.

    Returns:
        In execution order of ``after``. Nodes that stand for none, or whose value has another shape, are left out.
    """
    wants, gots = _values(before, inputs), _values(after, inputs)
    found = []
    for node, reference in counterparts(before, after).items():
        want, got = wants.get(reference), gots.get(node.name)
        if want is not None and got is not None and want.shape == got.shape:
            found.append(
                NodeDifference(reference, node.name, tuple(names_of(node)), op_name(node), difference(want, got))
            )
    return found


def counterparts(before: Program, after: Program) -> dict[fx.Node, str]:
    """Find for nodes of ``after`` the node of ``before`` whose value they should have.

    A node that was there before stands for itself. A new node stands for the last of the nodes it was made from; where
    a row of new nodes (quantize, dequantize ...) was made from one, only the last of the row does.
    """
    known = {node.name for node in before.calls}
    last: dict[str, fx.Node] = {}
    for node in after.calls:
        if node.name in known:
            last[node.name] = node
            continue
        sources = node.meta.get("custom", {}).get(PROVENANCE, {}).get("from", [])
        if sources and sources[-1] in known:
            last[sources[-1]] = node
    order = {node: position for position, node in enumerate(after.calls)}
    return {node: name for name, node in sorted(last.items(), key=lambda item: order[item[1]])}


def _values(program: Program, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensor that each call gives, by name of the node."""
    recorder = _Recorder(program.module)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.values


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, torch.Tensor):
            self.values[n.name] = value
        return value
