"""Runs a program node by node, each for all batches before the next: weights may change just ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import fx

from shave.ir.program import Program, attribute
from shave.passes.repair.spool import Spool, Stored


class Walk:
    """One run over all batches, as far as it has come.

    Values are dropped once all that read them have been computed, unless :meth:`pin` has asked for them. Weights and
    arguments are looked up when a node is computed, so that they may be changed up to then.

    Args:
        program: What to run.
        batches: Its inputs, in the spool.
        spool: Where values are kept.
    """

    def __init__(self, program: Program, batches: Sequence[Sequence[Stored]], spool: Spool) -> None:
        self._program = program
        self._batches = batches
        self._spool = spool
        self._order = [node for node in program.graph.nodes if node.op == "call_function"]
        self._position = {node: position for position, node in enumerate(self._order)}
        self._next = 0
        self._values: dict[fx.Node, list[Any]] = {}
        self._readers = {node: sum(user.op == "call_function" for user in node.users) for node in program.graph.nodes}
        self._inputs = {node: position for position, node in enumerate(program.inputs)}

    @property
    def calls(self) -> Sequence[fx.Node]:
        """The calls, in execution order."""
        return self._order

    def pin(self, node: fx.Node) -> None:
        """Keep the value of a node until as many calls of :meth:`unpin`."""
        self._readers[node] += 1

    def unpin(self, node: fx.Node) -> None:
        """Take a :meth:`pin` back."""
        self._read(node)

    def has(self, node: fx.Node) -> bool:
        """Whether the value of a node is there now."""
        return node in self._inputs or node in self._values

    def advance(self, node: fx.Node) -> None:
        """Compute all calls up to this one and itself, as far as that has not been done."""
        while self._next <= self._position.get(node, -1):
            self._compute(self._order[self._next])
            self._next += 1

    def again(self, node: fx.Node) -> None:
        """Compute a node anew whose value is there; what it reads must be pinned."""
        for value in self._values.pop(node):
            if isinstance(value, Stored):
                self._spool.drop(value)
        self._values[node] = self._results(node)

    def values(self, node: fx.Node) -> Iterator[torch.Tensor]:
        """The value of a node that is there, batch by batch."""
        for number in range(len(self._batches)):
            yield cast(torch.Tensor, self._load(node, number))

    def _compute(self, node: fx.Node) -> None:
        self._values[node] = self._results(node)
        for each in node.all_input_nodes:
            self._read(each)
        if not self._readers[node]:
            self._drop(node)

    def _results(self, node: fx.Node) -> list[Any]:
        results = []
        for number in range(len(self._batches)):
            load = partial(self._load, number=number)
            args: Any = fx.map_arg(node.args, load)
            kwargs: Any = fx.map_arg(node.kwargs, load)
            assert callable(node.target)
            with torch.no_grad():
                value = node.target(*args, **kwargs)
            results.append(self._spool.put(value) if isinstance(value, torch.Tensor) else value)
        return results

    def _load(self, node: fx.Node, number: int) -> Any:
        if node in self._inputs:
            return self._spool.get(self._batches[number][self._inputs[node]])
        if node.op == "get_attr":
            return attribute(self._program.module, str(node.target))
        value = self._values[node][number]
        return self._spool.get(value) if isinstance(value, Stored) else value

    def _read(self, node: fx.Node) -> None:
        if node.op != "call_function":
            return
        self._readers[node] -= 1
        if not self._readers[node]:
            self._drop(node)

    def _drop(self, node: fx.Node) -> None:
        for value in self._values.pop(node, ()):
            if isinstance(value, Stored):
                self._spool.drop(value)
