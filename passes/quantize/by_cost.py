"""Leaves products in float where integers, with the conversions that they need, are no faster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cache

from torch import fx

from shave.ir.cost import one_sample
from shave.ir.program import Program
from shave.passes.problems import Oracle
from shave.passes.quantize.placement import Placement, connected, place
from shave.passes.quantize.times import Times, conversion, milliseconds, times_of


@dataclass
class Verdict:
    """What costs say of products, by name.

    Attributes:
        slower: Those that shall compute in float, each with the reason.
        stored: Those of them whose float kernels read weights that may be stored as integers at no loss of time.
        faster: Those that integers make faster, each with its times.
    """

    slower: dict[str, str] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    faster: dict[str, str] = field(default_factory=dict)


def weigh(program: Program, chosen: Collection[fx.Node], oracle: Oracle) -> Verdict:
    """Find the products that are no faster in integers.

    A product that goes back to float spares the conversions of what it alone reads as integers, and may ask for new
    ones around it. So products go back as long as the sum of all times does not grow: those first for which the target
    has no kernel, then each by itself, then all of a run that hands integers on. What the oracle does not know stays as
    placed.

    Args:
        program: In float.
        chosen: The calls that may work on integers.
        oracle: Seconds of operators.
    """
    return _Scales(program, chosen, cache(oracle)).verdict()  # layers are alike


class _Scales:
    def __init__(self, program: Program, chosen: Collection[fx.Node], oracle: Oracle) -> None:
        self._program, self._chosen = program, set(chosen)
        self._placement = place(program, self._chosen)
        sizes = one_sample(program)
        self._times: dict[fx.Node, Times] = {}
        self._weights = self._placement.weights
        for node in self._placement.products:
            times = times_of(node, node in self._weights, oracle, sizes)
            if times is not None:
                self._times[node] = times
        self._conversions = {value: conversion(value, oracle, sizes) for value in self._placement.readers}

    def verdict(self) -> Verdict:
        found = Verdict()
        none = [node for node, times in self._times.items() if times.integers is None]
        if none:
            found.slower.update((node.name, "in float: the target has no integer kernel for it") for node in none)
            self._leave(none, place(self._program, self._chosen.difference(none)))
        self._try(lambda: [[node] for node in sorted(self._known(), key=self._gain)], found)
        self._try(self._runs, found)
        constant = {node.name for node, times in self._times.items() if times.direct and node in self._weights}
        found.stored.update(constant.intersection(found.slower))
        found.faster.update((node.name, self._text(node)) for node in self._known())
        return found

    def _known(self) -> list[fx.Node]:
        """The products still in integers whose times are known."""
        return [node for node in self._placement.products if node in self._times]

    def _runs(self) -> list[list[fx.Node]]:
        """Products that hand integers on to each other or read the same."""
        readers, heads = self._placement.readers, self._placement.heads
        pairs = [(value, each) for value, reading in readers.items() for each in (*reading, heads.get(value, value))]
        pairs += [(each, heads[each]) for reading in readers.values() for each in reading if each in heads]
        runs = connected(dict.fromkeys(node for pair in pairs for node in pair), pairs)
        products = set(self._placement.products)
        return [[node for node in run if node in products] for run in runs]

    def _try(self, candidates: Callable[[], list[list[fx.Node]]], found: Verdict) -> None:
        """Let groups of products go back to float until that makes nothing faster."""
        again = True
        while again:
            again = False
            for group in candidates():
                if not self._times.keys() >= set(group) or not self._chosen.issuperset(group):
                    continue
                # Conversions elsewhere can only be added: most groups need not be tried.
                if sum(map(self._gain, group)) > self._reading(group):
                    continue
                trial = place(self._program, self._chosen.difference(group))
                if self._total(trial) <= self._total(self._placement):
                    found.slower.update((node.name, f"in float: no faster: {self._text(node)}") for node in group)
                    self._leave(group, trial)
                    again = True

    def _leave(self, group: Iterable[fx.Node], placement: Placement) -> None:
        self._chosen.difference_update(group)
        self._placement = placement

    def _gain(self, node: fx.Node) -> float:
        times = self._times[node]
        return times.floats - (times.integers or 0.0)

    def _reading(self, group: Collection[fx.Node]) -> float:
        """Seconds of the conversions that are there for some products, perhaps among others."""
        borders = self._placement.borders
        return sum(self._conversions[value] for value in borders if not set(group).isdisjoint(self._reached(value)))

    def _reached(self, value: fx.Node) -> set[fx.Node]:
        """The calls that read a quantized value, directly or through what works on integers."""
        found: set[fx.Node] = set()
        left = list(self._placement.readers[value])
        while left:
            node = left.pop()
            if node not in found:
                found.add(node)
                if node not in self._times and self._placement.reasons[node][0]:
                    left += [user for user in node.users if user in self._placement.reasons]
        return found

    def _total(self, placement: Placement) -> float:
        """Seconds of all known products and of all conversions."""
        integers = set(placement.products)
        products = sum(
            times.integers if node in integers and times.integers is not None else times.floats
            for node, times in self._times.items()
        )
        return products + sum(self._conversions[value] for value in placement.borders)

    def _text(self, node: fx.Node) -> str:
        times, reading = self._times[node], self._reading([node])
        also = f" and {milliseconds(reading)} of conversions" if reading else ""
        return f"{milliseconds(times.integers or 0.0)} in integers{also}, {milliseconds(times.floats)} in float"
