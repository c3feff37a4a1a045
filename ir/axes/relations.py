"""What an axis map works with: the terms of values, and the operator that relates them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from shave.ir.axes import terms
from shave.ir.axes.terms import Term
from shave.ir.ops import argument, op_name
from shave.ir.shapes import hints

Axes = tuple[Term, ...]
"""A term for each axis of a tensor."""


class Relations:
    """The terms of all values, as far as the graph has been gone through, and the call that is being looked at."""

    def __init__(self) -> None:
        self.values: dict[fx.Node, Axes | list[Axes]] = {}
        self.constant: set[fx.Node] = set()
        self.here = ""

    def enter(self, node: fx.Node) -> None:
        """Go to a call: reasons that are given from now on name it."""
        self.here = f"{op_name(node)} ({node.name})"

    def of(self, value: Any) -> Axes:
        """The terms of an argument; none for what is no tensor."""
        if not isinstance(value, fx.Node):
            return ()
        axes = self.values.get(value, ())
        return axes if isinstance(axes, tuple) else ()

    def argument(self, node: fx.Node, name: str) -> Axes:
        """The terms of an argument by its name; none if it is absent."""
        return self.of(argument(node, name))

    def fresh(self, node: fx.Node) -> Axes:
        """New terms for the axes of a call's result."""
        return tuple(Term(size) for size in hints(node.meta["val"].shape))

    def fix(self, axes: Iterable[Term], why: str = "") -> None:
        """Let no position of these axes go; by default because the operator is not known."""
        for term in axes:
            terms.fix(term, f"{self.here} {why}" if why else f"{self.here} has no axis map")

    def unify(self, left: Term, right: Term) -> None:
        """Make two axes equal."""
        terms.unify(left, right, self.here)

    def align(self, left: Sequence[Term], right: Sequence[Term]) -> None:
        """Make two row-major products of axes equal."""
        terms.align(left, right, self.here)

    def unify_all(self, left: Sequence[Term], right: Sequence[Term]) -> None:
        """Make axes equal in pairs."""
        for one, other in zip(left, right, strict=True):
            self.unify(one, other)

    def broadcast(self, out: Sequence[Term], *operands: Sequence[Term]) -> None:
        """Make the axes of operands equal to those of the result, but for those of one position that are repeated."""
        for axes in operands:
            for term, result in zip(reversed(axes), reversed(out), strict=False):
                if term.size == result.size:
                    self.unify(term, result)
                elif term.size != 1:
                    self.fix([term, result], "gives it another size")

    def mark(self, axes: Iterable[Term], kind: str) -> None:
        """Note what the atoms of these axes are."""
        for term in axes:
            terms.mark(term, frozenset({kind}))

    def is_constant(self, value: Any) -> bool:
        """Whether a value is computed from weights alone."""
        return not isinstance(value, fx.Node) or value in self.constant


AxisMap = Callable[[fx.Node, Relations], "Axes | list[Axes]"]
"""Relates the axes of one call's inputs and gives those of its result (of each, if it has several)."""


def axis(index: int, axes: Sequence[Any]) -> int:
    """A non-negative axis number."""
    return index % len(axes) if axes else 0


def tensors(node: fx.Node) -> list[fx.Node]:
    """The arguments of a call that are tensors, lists opened, in order."""
    return [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), (torch.Tensor, tuple, list))]
