"""Split layers into chains of smaller ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import cache, partial
from typing import Literal

import torch
from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.factorize import plan
from shave.passes.factorize.cp import Cp
from shave.passes.factorize.drift import POINTS, measured
from shave.passes.factorize.factorization import Factorization
from shave.passes.factorize.layer import Layer, is_candidate, read
from shave.passes.factorize.metric import Metric
from shave.passes.factorize.options import Choice
from shave.passes.factorize.plan import Amount, Candidate, Decision, Terms
from shave.passes.factorize.ranks import text
from shave.passes.factorize.separable import Separable
from shave.passes.factorize.surgery import replace
from shave.passes.factorize.svd import Svd
from shave.passes.factorize.tensor_train import TensorTrain, why_not_shapes
from shave.passes.factorize.tucker import Tucker
from shave.passes.intermediate import counterparts
from shave.passes.probe import first_samples
from shave.passes.repair.repair import Method, repair
from shave.passes.report import Report
from shave.passes.scope import select
from shave.passes.stages import Stage
from shave.passes.statistics import input_moments

DRIFT_MACS = 5e11
"""What the drift of the outputs may take to measure (15 seconds of one core), but for samples that are always run."""
DRIFT_SAMPLES = range(8, 65)
"""Samples that it is measured on."""
MAX_ERROR = 0.1
"""Of a layer whose ranks are chosen by cost alone, unless the user says otherwise."""

_METHODS: dict[str, type[Factorization]] = {method.name: method for method in (Svd, Tucker, Separable, Cp, TensorTrain)}
_AUTO = ("tucker", "svd", "separable")
"""What is weighed against each other: the rest loses more at the same cost unless it is trained."""


@dataclass(frozen=True)
class Factorize(Pass):
    """Split layers into chains of smaller ones of low rank.

    Linear layers and convolutions become two to four ordinary layers each, which every later pass and every backend
    takes. With calibration data the error of a layer's output is minimised, else that of its weights. Ranks are given,
    follow from the weights, or are chosen by what the chain will cost; with ``macs``, ``params`` or ``time`` over all
    layers at once. See ``docs/factorize.md``.
    """

    name = "factorize"
    exactness = Exactness.LOSSY
    requires = Stage.FLOAT | Stage.QUANTIZED

    method: Literal["auto", "svd", "tucker", "separable", "cp", "tensor-train"] = option(
        "auto", help="how to split; auto: by svd, tucker or separable, whatever is best for a layer"
    )
    rank: int | float | tuple[int, ...] | Literal["cost", "energy", "vbmf", "greedy"] = option(
        "cost", help="numbers, a share of the full rank (0.25), or the rule that ranks follow from"
    )
    macs: float | None = option(None, search=(0.9, 0.75, 0.5, 0.33), help="share of the program's MACs to keep")
    params: float | None = option(None, search=(0.9, 0.75, 0.5, 0.33), help="share of its parameters to keep")
    time: float | None = option(None, search=(0.9, 0.75, 0.5), help="share of the time of layers that can be split")
    energy: float = option(
        0.95, help="share of the output's energy that rank=energy keeps; where vbmf finds nothing too"
    )
    max_error: float | None = option(
        None, help="largest error of a layer's output, relative; none: 0.1 for rank=cost, else no limit"
    )
    max_drop: float = option(0.01, help="for rank=greedy, how far evaluate may fall")
    gain: Literal["time", "macs", "params"] = option(
        "time", help="what a chain must save to be worth it; time without a target: MACs"
    )
    out_shape: tuple[int, ...] = option((), help="for tensor-train: factors of the outputs")
    in_shape: tuple[int, ...] = option((), help="for tensor-train: factors of the inputs, as many")
    repair: Literal["auto", "none", "statistics", "reconstruct"] = option(
        "auto", help="how to mend what follows a chain; auto: reconstruct if there is calibration data"
    )
    data: bool = option(True, help="whether to use calibration data where there is some")
    layers: tuple[str, ...] = option((), help="scopes to split; all by default")
    skip: tuple[str, ...] = option((), help="scopes to leave as they are")

    def __post_init__(self) -> None:
        ranks = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        if not ranks:
            raise ValueError("rank=[] has no number")
        for rank in ranks:
            if isinstance(rank, bool) or (isinstance(rank, int) and rank < 1):
                raise ValueError(f"rank is {rank}, but is 1 at least")
            if isinstance(rank, float) and not 0 < rank < 1:
                raise ValueError(f"rank is {rank}, but a share of the full rank lies between 0 and 1")
        if len(budgets := self._budgets) > 1:
            raise ValueError(f"{' and '.join(budgets)} are given, but one of them decides")
        for name, keep in budgets.items():
            if not 0 < keep < 1:
                raise ValueError(f"{name} is {keep}, but the share to keep lies between 0 and 1")
            if self.rank != "cost":
                raise ValueError(
                    f"{name} chooses the ranks, so that rank={self.rank} has no say: leave one of them out"
                )
        if not 0 < self.energy < 1:
            raise ValueError(f"energy is {self.energy}, but lies between 0 and 1")
        if self.max_error is not None and not 0 < self.max_error <= 1:
            raise ValueError(f"max-error is {self.max_error}, but lies above 0 and is 1 at most")
        if not self.max_drop >= 0:
            raise ValueError(f"max-drop is {self.max_drop}, but is 0 at least")
        if (self.out_shape or self.in_shape) and self.method != "tensor-train":
            raise ValueError(f"out-shape and in-shape are for tensor-train, not for {self.method}")
        if len(self.out_shape) != len(self.in_shape) or len(self.out_shape) == 1:
            counts = f"out-shape has {len(self.out_shape)} factors and in-shape {len(self.in_shape)}"
            raise ValueError(f"{counts}, but both have as many, 2 at least")
        if min((*self.out_shape, *self.in_shape), default=1) < 1:
            raise ValueError("a factor of out-shape or in-shape is below 1")

    @property
    def _budgets(self) -> dict[Amount, float]:
        given: dict[Amount, float | None] = {"macs": self.macs, "params": self.params, "time": self.time}
        return {name: keep for name, keep in given.items() if keep is not None}

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        order = {node.name: place for place, node in enumerate(program.graph.nodes)}
        terms = self._terms(context)
        layers = self._layers(program, report)
        metrics = self._metrics(program, [layer for layer, _ in layers], context)
        candidates = [
            Candidate(layer, self._methods(kinds, layer, metrics[layer.node]), plan.whole_costs(layer, terms.oracle))
            for layer, kinds in layers
        ]
        decisions = self._decide(program, context, terms, candidates)
        largest = 0.0
        for candidate, decision in zip(candidates, decisions, strict=True):
            if isinstance(decision, str):
                report.skipped(candidate.layer.node, decision)
                continue
            error = candidate.fitted(decision).error ** 0.5
            largest = max(largest, error)
            report.applied(candidate.layer.node, _describe(candidate, decision, error))
        chosen = {c: d for c, d in zip(candidates, decisions, strict=True) if isinstance(d, Choice)}
        whole = program.clone()
        replace(program, chosen, self.name)
        if chosen and (method := self._repair(context)) is not None:
            self._mend(whole, program, method, context, report)
        report.entries.sort(key=lambda entry: order[entry.node])
        report.metrics["largest_error"] = largest
        return report

    def _repair(self, context: Context) -> Method | None:
        """How to mend."""
        if self.repair == "none":
            return None
        if self.repair == "auto":
            idle = context.calibration is None or not self.data or self.rank == "greedy"
            return None if idle else "reconstruct"
        context.need("calibration", self)
        return self.repair

    def _mend(self, whole: Program, split: Program, method: Method, context: Context, report: Report) -> None:
        """Let the last steps of chains, and all layers behind them, make up for what the chains ahead get wrong."""
        known = {node.name for node in whole.calls}
        fresh = [node.name for node in split.calls if node.name not in known]
        places = {entry.node: place for place, entry in enumerate(report.entries)}
        names = counterparts(whole, split)
        with split.rewrite(by=self.name) as rewriter:
            done = repair(
                whole,
                split,
                {},
                fresh,
                context.batches(split, self),
                method,
                rewriter=rewriter,
                generator=context.generator(),
                track=partial(context.track, what=f"{self.name}: mend"),
            )
        for each in done:
            if each.node.name in known:
                (report.applied if each.changed else report.skipped)(each.node, str(each))
            else:
                place = places[names[each.node]]
                entry = report.entries[place]
                report.entries[place] = replace_fields(entry, text=f"{entry.text}; behind the other chains, {each}")

    def _terms(self, context: Context) -> Terms:
        amount: Amount = next(iter(self._budgets), self.gain)
        if amount == "time" and context.oracle is None:
            if self.time is not None:
                raise PipelineError(f"pass {self.name} needs a target for time: give PassManager.run(target=...)")
            amount = "macs"
        limit = self.max_error if self.max_error is not None else 1.0
        oracle = None if context.oracle is None else cache(context.oracle)  # many chains have steps in common
        return Terms(amount, oracle, int(getattr(context.target, "lanes", 1)), limit**2)

    def _layers(self, program: Program, report: Report) -> list[tuple[Layer, list[type[Factorization]]]]:
        """The layers that can be split, each with the methods that are for it."""
        found = []
        for node in select(program, filter(is_candidate, program.calls), self.layers, self.skip):
            layer = read(program, node)
            if isinstance(layer, str):
                report.skipped(node, layer)
                continue
            names = _AUTO if self.method == "auto" else (self.method,)
            refusals = {name: self._why_not(name, layer) for name in names}
            kinds = [_METHODS[name] for name, refusal in refusals.items() if not refusal]
            if kinds:
                found.append((layer, kinds))
            else:
                report.skipped(node, next(iter(refusals.values())))
        return found

    def _why_not(self, name: str, layer: Layer) -> str:
        reason = _METHODS[name].why_not(layer)
        if not reason and name == TensorTrain.name and self.out_shape:
            return why_not_shapes(layer, self.out_shape, self.in_shape)
        return reason

    def _methods(self, kinds: Sequence[type[Factorization]], layer: Layer, metric: Metric) -> list[Factorization]:
        shapes = (self.out_shape, self.in_shape) if self.out_shape else None
        return [TensorTrain(layer, metric, shapes) if kind is TensorTrain else kind(layer, metric) for kind in kinds]

    def _metrics(self, program: Program, layers: Sequence[Layer], context: Context) -> dict[fx.Node, Metric]:
        """What errors are measured by, from calibration data where there is some."""
        found = {layer.node: Metric() for layer in layers}
        if context.calibration is None or not self.data:
            return found
        readers = {layer.node: (layer.source, layer.features, layer.sampler(context.seed)) for layer in layers}
        moments = input_moments(program, readers, context.batches(program, self))
        return {node: Metric.of(moments.pop(node)) for node in found}

    def _decide(
        self, program: Program, context: Context, terms: Terms, candidates: Sequence[Candidate]
    ) -> Sequence[Decision]:
        if self.rank == "vbmf":
            return plan.by_vbmf(candidates, terms, self.energy)
        if self.rank == "energy":
            return plan.by_error(candidates, terms, 1 - self.energy)
        if self.rank == "greedy":
            return self._by_greed(program, context, terms, candidates)
        if not isinstance(self.rank, str):
            return plan.by_rank(candidates, terms, self.rank)
        if not self._budgets:
            return plan.by_error(candidates, terms, terms.max_error if self.max_error else MAX_ERROR**2)
        (keep,) = self._budgets.values()
        curves = self._curves(program, context, terms, candidates)
        return plan.by_budget(candidates, curves, terms, keep, self._total(program, terms, candidates))

    def _curves(
        self, program: Program, context: Context, terms: Terms, candidates: Sequence[Candidate]
    ) -> Sequence[Sequence[Choice]]:
        """The choices of all layers, with what they do to the outputs where there is data."""
        curves = [terms.choices(candidate) for candidate in candidates]
        if context.calibration is None or not self.data:
            return curves
        runs = POINTS * max(1, len(candidates))
        affordable = int(DRIFT_MACS / max(1.0, program.cost().macs * runs))
        wanted = min(max(affordable, DRIFT_SAMPLES[0]), DRIFT_SAMPLES[-1])
        batches: list[tuple[torch.Tensor, ...]] = []
        for batch in context.batches(program, self):
            batches.append(first_samples(program, batch))
            if sum(len(each[0]) for each in batches if each and each[0].dim()) >= wanted:
                break
        track = partial(context.track, what=f"{self.name}: drift")
        return measured(program, candidates, curves, batches, track)

    def _total(self, program: Program, terms: Terms, candidates: Sequence[Candidate]) -> float:
        if terms.amount == "time":
            return sum(terms.measure(candidate.costs) for candidate in candidates)
        cost = program.cost()
        return cost.macs if terms.amount == "macs" else cost.parameters

    def _by_greed(
        self, program: Program, context: Context, terms: Terms, candidates: Sequence[Candidate]
    ) -> Sequence[Decision]:
        evaluate = context.need("evaluate", self)
        least = evaluate(program) - self.max_drop

        def fits(chosen: Mapping[int, Choice]) -> bool:
            trial = program.clone()
            nodes = {node.name: node for node in trial.graph.nodes}
            replace(trial, {candidates[k].moved(nodes): choice for k, choice in chosen.items()}, self.name)
            return bool(evaluate(trial) >= least)

        return plan.by_greed(candidates, self._curves(program, context, terms, candidates), terms, fits)


def _describe(candidate: Candidate, choice: Choice, error: float) -> str:
    metric = choice.method.metric
    amounts: list[Amount] = ["time", "macs", "params"] if choice.costs.time is not None else ["macs", "params"]
    savings = [plan.saving(candidate.costs, choice.costs, amount) for amount in amounts]
    by = metric.note or ("by data" if metric.by_data else "by weights alone")
    return f"{choice.method.name} of rank {text(choice.ranks)}: {', '.join(savings)}; output error {error:.2g} ({by})"
