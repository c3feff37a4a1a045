"""Which pointwise calls are computed on the result of another call while it is still at hand, before any rounding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from shave.ir.shapes import hints
from shave.passes.quantize.table import Kind, is_float

SMALL = 4
"""An operand of so many times fewer elements than the result is read as floats: that costs nothing."""


class Epilogues:
    """For each pointwise call, which of its operands it reads at hand and which from memory.

    A chain of pointwise calls belongs to the call that heads it (a product, mostly). Where a call joins two chains, it
    belongs to the later one, whose result nothing else reads, and reads the other from memory; a call that belongs to
    neither heads a chain of its own.

    Args:
        calls: In execution order.
        kinds: Of each call.
        constants: Weights, and what is computed from them.
    """

    def __init__(self, calls: list[fx.Node], kinds: Mapping[fx.Node, Kind], constants: set[fx.Node]) -> None:
        self._kinds = kinds
        self._constants = constants
        self._position = {node: place for place, node in enumerate(calls)}
        self.head: dict[fx.Node, fx.Node] = {}
        self.at_hand: dict[fx.Node, fx.Node | None] = {}
        for node in calls:
            if kinds[node] is Kind.POINTWISE:
                self.at_hand[node] = operand = self._choose(node)
                self.head[node] = node if operand is None else self.head.get(operand, operand)

    def activations(self, node: fx.Node) -> list[fx.Node]:
        """The distinct float values that a call reads and that depend on the inputs."""
        return [each for each in node.all_input_nodes if each not in self._constants and is_float(each)]

    def from_memory(self, node: fx.Node) -> list[fx.Node]:
        """The operands of a pointwise call that are worth reading as bytes."""
        elements = _elements(node)
        return [
            each
            for each in self.activations(node)
            if each is not self.at_hand[node]
            and self.head.get(each, each) is not self.head[node]
            and _elements(each) * SMALL > elements
        ]

    def _choose(self, node: fx.Node) -> fx.Node | None:
        operands = self.activations(node)
        heads = {self.head.get(each, each) for each in operands}
        if len(heads) == 1:
            full = [each for each in operands if _elements(each) == _elements(node)] or operands
            return max(full, key=lambda each: self._position.get(each, -1))
        free = [each for each in operands if self._is_free(each, node)]
        return max(free, key=lambda each: self._position[each], default=None)

    def _is_free(self, value: fx.Node, reader: fx.Node) -> bool:
        """Whether a value can stay at hand: its maker computes, and nothing but ``reader`` reads it."""
        if list(value.users) != [reader] or _elements(value) != _elements(reader):
            return False
        maker = value
        while self._kinds.get(maker) is Kind.MOVEMENT and len(maker.users) == 1 and self.activations(maker):
            maker = self.activations(maker)[0]  # as a product can write its result in another order
        if maker is not value:
            return self._kinds.get(self.head.get(maker, maker)) is Kind.PRODUCT and len(maker.users) == 1
        return self._kinds.get(maker) not in (None, Kind.MOVEMENT)


def _elements(node: fx.Node) -> int:
    count = 1
    for size in hints(node.meta["val"].shape):
        count *= size
    return count
