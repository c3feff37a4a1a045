"""Goes through a cut program from its inputs on and mends each layer, so that later layers see mended inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.intermediate import counterparts
from shave.passes.prune.groups import Group
from shave.passes.prune.roles import Role
from shave.passes.repair.layer import Layer, layer_of
from shave.passes.repair.least_squares import NormalEquations, fit
from shave.passes.repair.spool import Spool, Stored
from shave.passes.repair.target import Join, Kept, at_join, at_layer, join_of
from shave.passes.repair.walk import Walk

Method = Literal["statistics", "reconstruct"]

ROWS_PER_FEATURE = 4
LEAST_ROWS = 16384
"""Rows of outputs that a layer is fitted to, drawn at random from all batches."""
MOST_FEATURES = 6144
"""Weights of one output of a layer that is fitted: the equations take the square of that, several times."""

_ACROSS = ("aten.layer_norm", "aten.group_norm", "aten.rms_norm", "aten.native_layer_norm", "aten.native_group_norm")


@dataclass(frozen=True)
class Mended:
    """What was done to one node.

    Attributes:
        node: The node.
        text: What was done, or why nothing was.
        changed: Whether anything was done.
        before: Error of a layer on held-out data, relative to the mean square of what it should give; None if unknown.
        after: The same afterwards.
    """

    node: fx.Node
    text: str
    changed: bool = True
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        return self.text if self.before is None else f"{self.text}: error {self.before:.3g} -> {self.after:.3g}"


def repair(
    whole: Program,
    cut: Program,
    kept: Kept,
    changed: Collection[str],
    batches: Iterable[tuple[torch.Tensor, ...]],
    method: Method,
    *,
    rewriter: Rewriter,
    generator: torch.Generator,
    track: Callable[[Iterable[fx.Node]], Iterable[fx.Node]] = iter,
) -> list[Mended]:
    """Mend a cut program in place.

    Batch norms get statistics of what they now read, but for those behind a fitted layer. With ``statistics`` the bias
    of every other layer is corrected, so that the mean of each of its outputs is as before (Nagel et al. 2019,
    "Data-Free Quantization", section 4.2, from data). With ``reconstruct`` the weights of every convolution and linear
    layer are fitted by least squares to what the whole program gives there; see :mod:`.least_squares` and
    :mod:`.target`.

    Args:
        whole: The program from before the cut.
        cut: The program to mend.
        kept: What the cut left of the values of the whole program.
        changed: The calls that summed over channels that are gone, by name: they and all behind them need mending.
        batches: Calibration data.
        method: What to do.
        rewriter: Of the cut program.
        generator: The source of all randomness.
        track: Shows progress over the nodes.
    """
    with Spool() as spool:
        stored = [[spool.put(tensor) for tensor in batch] for batch in batches]
        mender = _Mender(whole, cut, kept, changed, stored, method, rewriter, generator, spool)
        return [done for node in track(mender.cut.calls) if (done := mender.mend(node)) is not None]


def kept_positions(groups: Sequence[Group], keep: Mapping[str, Sequence[int]]) -> dict[str, dict[int, torch.Tensor]]:
    """What a cut leaves of each activation: by node and axis, the positions that stay."""
    gone: dict[tuple[str, int], tuple[int, set[int]]] = {}
    for group in groups:
        if group.name not in keep:
            continue
        staying = set(keep[group.name])
        removed = [unit for unit in range(group.units) if unit not in staying]
        for channels in group.values:
            size = int(channels.node.meta["val"].shape[channels.axis])
            entry = gone.setdefault((channels.node.name, channels.axis), (size, set()))
            entry[1].update(channels.index[removed].reshape(-1).tolist())
    found: dict[str, dict[int, torch.Tensor]] = {}
    for (name, axis), (size, positions) in gone.items():
        found.setdefault(name, {})[axis] = torch.tensor([each for each in range(size) if each not in positions])
    return found


def consumers(groups: Sequence[Group], keep: Mapping[str, Sequence[int]]) -> set[str]:
    """The calls whose value is another once channels are gone: those that sum over them or normalise across them."""
    return {
        each.reader.name
        for group in groups
        if group.name in keep
        for each in group.slices
        if each.role is Role.CONSUMES or op_name(each.reader) in _ACROSS
    }


class _Mender:
    """Both programs, as far as they have been run."""

    def __init__(
        self,
        whole: Program,
        cut: Program,
        kept: Kept,
        changed: Collection[str],
        batches: Sequence[Sequence[Stored]],
        method: Method,
        rewriter: Rewriter,
        generator: torch.Generator,
        spool: Spool,
    ) -> None:
        self._program, self._kept, self._method = cut, kept, method
        self._rewriter, self._generator, self._batches = rewriter, generator, len(batches)
        self.whole, self.cut = Walk(whole, batches, spool), Walk(cut, batches, spool)
        originals = {node.name: node for node in whole.calls}
        self._original = {node: originals[name] for node, name in counterparts(whole, cut).items()}
        self._touched = _behind(cut, changed)
        self._layers: dict[fx.Node, tuple[Layer, Join | None]] = {}
        for node in self.cut.calls:
            layer = layer_of(cut, node) if node in self._touched and node in self._original else None
            if layer is not None:
                join = join_of(cut, layer)
                self._layers[node] = (layer, join if join is not None and join.node in self._original else None)
                for each in self._targets(node):
                    self.whole.pin(each)

    def mend(self, node: fx.Node) -> Mended | None:
        """Mend a node if it needs it, and compute its value."""
        done = None
        if node in self._layers:
            layer, _ = self._layers[node]
            if self._fits(layer):
                self.cut.advance(layer.source)
                done = self._fit(*self._layers[node])
            elif not _is_normed(node):
                done = self._correct_bias(layer)
            for each in self._targets(node):
                self.whole.unpin(each)
        elif (
            op_name(node) == "aten.batch_norm"
            and node in self._touched
            and not self._is_fitted(argument(node, "input"))
        ):
            done = self._estimate(node)
        self.cut.advance(node)
        return done

    def _fit(self, layer: Layer, join: Join | None) -> Mended | None:
        """Fit a layer's weights by least squares."""
        start = layer.matrix(self._program)
        groups, features, outputs = start.shape
        training, held_out = (NormalEquations(groups, features - 1, outputs) for _ in range(2))
        wanted = max(LEAST_ROWS, ROWS_PER_FEATURE * features)
        for number, (x, y) in enumerate(zip(self.cut.values(layer.source), self._wanted(layer, join), strict=True)):
            rows = torch.randperm(len(y), generator=self._generator)[: -(-wanted // self._batches)]
            split = self._split(number, len(rows))
            for equations, chosen in ((training, rows[:split]), (held_out, rows[split:])):
                if len(chosen):
                    equations.add(
                        layer.features(x, chosen), y[chosen].reshape(len(chosen), groups, outputs).transpose(0, 1)
                    )
        found = fit(training, held_out, start)
        if found is None:
            return Mended(layer.node, "its weights stay: no fit does better on held-out data", False)
        layer.set_matrix(self._program, self._rewriter, found.weight)
        return Mended(layer.node, "its weights are fitted by least squares", True, found.before, found.after)

    def _split(self, number: int, rows: int) -> int:
        """How many of the rows of a batch are for fitting: each fourth batch is held out, a lone one is divided."""
        if self._batches < 4:
            return rows * 3 // 4
        return 0 if number % 4 == 3 else rows

    def _correct_bias(self, layer: Layer) -> Mended | None:
        """Shift a layer's bias by what its outputs lack on average."""
        self.cut.pin(layer.node)
        sources = [each for each in layer.node.all_input_nodes if each.op == "call_function"]
        for each in sources:
            self.cut.pin(each)
        self.cut.advance(layer.node)
        total, rows = torch.zeros(layer.node.meta["val"].shape[layer.axis], dtype=torch.float64), 0
        for have, want in zip(self.cut.values(layer.node), self._wanted(layer, None), strict=True):
            total += (want - layer.outputs(have)).double().sum(0)
            rows += len(want)
        bias = layer.matrix(self._program)[:, -1].reshape(-1)
        layer.set_bias(self._program, self._rewriter, bias + total / rows)
        self.cut.again(layer.node)
        for each in (*sources, layer.node):
            self.cut.unpin(each)
        return Mended(layer.node, "its bias is corrected")

    def _estimate(self, node: fx.Node) -> Mended | None:
        """Give a batch norm the statistics of what it reads."""
        source, mean, variance = (argument(node, name) for name in ("input", "running_mean", "running_var"))
        if mean is None or variance is None or mean.op != "get_attr" or variance.op != "get_attr":
            return None
        self.cut.advance(source)
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for value in self.cut.values(source):
            rows = value.transpose(0, 1).reshape(value.shape[1], -1).double()
            count, total, squares = count + rows.shape[1], total + rows.sum(1), squares + rows.square().sum(1)
        centre = total / count
        spread = (squares / count - centre.square()).clamp_min(0)
        for weight, new in ((mean, centre), (variance, spread)):
            self._rewriter.set_weight(node, weight, new.to(self._program.weight(weight).dtype))
        return Mended(node, "its statistics are estimated anew")

    def _is_fitted(self, node: fx.Node) -> bool:
        """Whether a layer gives what it should, as near as can be, so that the norm behind it is right as it is."""
        return node in self._layers and self._fits(self._layers[node][0])

    def _fits(self, layer: Layer) -> bool:
        """Whether a layer is to be fitted: not if its equations would take gigabytes."""
        inputs = layer.weight.meta["val"].shape[1:]
        return self._method == "reconstruct" and math.prod(inputs) <= MOST_FEATURES

    def _wanted(self, layer: Layer, join: Join | None) -> Iterator[torch.Tensor]:
        """What a layer should give, batch by batch, as [rows, channels]."""
        own = self._original[layer.node]
        self.whole.advance(own)
        plain = at_layer(layer, own, self.whole, self._kept)
        if join is None or not self.cut.has(join.other):
            return plain
        total = self._original[join.node]
        self.whole.advance(total)
        return at_join(layer, join, total, self.whole, self.cut, self._kept, plain)

    def _targets(self, node: fx.Node) -> list[fx.Node]:
        """The calls of the whole program that a layer may be compared at."""
        _, join = self._layers[node]
        return [self._original[node]] + ([self._original[join.node]] if join is not None else [])


def _behind(program: Program, names: Collection[str]) -> set[fx.Node]:
    """The calls of these names and all that depend on them."""
    found: set[fx.Node] = set()
    for node in program.calls:
        if node.name in names or any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found


def _is_normed(node: fx.Node) -> bool:
    """Whether a batch norm alone reads the call, so that its mean is taken out anyway."""
    return len(node.users) == 1 and op_name(next(iter(node.users))) == "aten.batch_norm"
