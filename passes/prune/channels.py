"""Cut whole channels, heads and the like out of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from shave.ir.program import Program
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.prune.amounts import Budget, Multiple, budget
from shave.passes.prune.groups import find_groups
from shave.passes.prune.importance import CRITERIA
from shave.passes.prune.importance.criterion import Reduction
from shave.passes.prune.importance.normalise import Normaliser
from shave.passes.prune.plain_weights import unpack
from shave.passes.prune.pruning import Plan, Pruning
from shave.passes.prune.schedule import Schedule
from shave.passes.prune.selection import Attention, refusals, refuse_unknown
from shave.passes.repair.repair import Method
from shave.passes.report import Report
from shave.passes.stages import Stage

CriterionName = Literal[
    "l1", "l2", "fpgm", "bn-scale", "lamp", "weight-correlation", "taylor", "variance", "magnitude", "apoz",
    "correlation", "fluctuation", "random",
]  # fmt: skip
Ranking = Literal["uniform", "global", "isomorphic", "auto"]
Repair = Literal["auto", "none", "statistics", "reconstruct"]


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Cut channels, heads and the like out of all weights that hold them, and mend what is left.

    The groups of :mod:`shave.passes.prune.groups` are cut as the options say; each cut is proven by
    :mod:`shave.passes.prune.certificate`. With calibration data the program is then mended layer by layer, see
    :mod:`shave.passes.repair`; with a trainer it is trained after each step.

    How much goes is said by one of ``ratio`` (the share of channels that goes) or the budgets ``macs``, ``params``,
    ``size`` (what stays: a share, ``50%`` or a number of more than one). Without either, ``ranking=auto`` cuts what the
    outputs can spare.
    """

    name: ClassVar[str] = "prune-channels"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    requires: ClassVar[Stage] = Stage.FLOAT | Stage.QUANTIZED

    ratio: float | Mapping[str, float] | None = option(
        None, search=(0.125, 0.25, 0.375, 0.5), help="share of the units of each group that goes, or shares by scope"
    )
    macs: float | str | None = option(None, help="multiply-accumulates to keep: 0.5, 50% or 60e6")
    params: float | str | None = option(None, help="parameters to keep, likewise")
    size: float | str | None = option(None, help="bytes of weights to keep, likewise")
    criterion: CriterionName = option("l2", help="what tells which units matter least")
    ranking: Ranking = option("uniform", help="how strength is spread over groups; auto: by what each can spare")
    normalise: Normaliser = option("mean", help="what makes scores of groups comparable when they are ranked together")
    reduction: Reduction = option("mean", help="what makes one score of those from several weights of a group")
    multiple: int | None = option(
        None, help="channels come in multiples of this; by default one or two of the target's vectors"
    )
    floor: int | float = option(0.1, help="the fewest units that stay: a share, or a number")
    max_error: float = option(0.02, help="without an amount: the relative squared error that the outputs may take")
    attention: Attention = option("heads", help="what of attention is cut: whole heads, or their dims")
    only: tuple[str, ...] = option((), help="scopes to cut; by default everything")
    skip: tuple[str, ...] = option((), help="scopes to leave whole")
    steps: int = option(1, help="cut in so many steps, and mend or train after each")
    schedule: Schedule = option("cubic", help="how the cut is spread over the steps")
    repair: Repair = option("auto", help="how to mend after a cut; auto: reconstruct if there is calibration data")
    strict: bool = option(False, help="fail where an operator that is not known keeps a group from being cut")

    def __post_init__(self) -> None:
        ratios = self.ratio.values() if isinstance(self.ratio, Mapping) else [self.ratio or 0.0]
        for ratio in ratios:
            if not 0 <= ratio < 1:
                raise ValueError(f"ratio={ratio:g}: the share that goes is at least 0 and less than 1")
        budgets = self.budgets
        if self.ratio is not None and budgets:
            raise ValueError(f"ratio and {budgets[0].cost} both say how much goes: give one of them")
        if self.ratio is not None and self.ranking == "auto":
            raise ValueError("ranking=auto finds the ratios itself: give macs, params, size or nothing, not ratio")
        if isinstance(self.ratio, Mapping) and self.ranking != "uniform":
            raise ValueError(f"ratios by scope leave nothing to rank: ranking={self.ranking} takes a single ratio")
        if self.multiple is not None and self.multiple < 1:
            raise ValueError(f"multiple={self.multiple}: it is at least 1")
        if not self.floor >= 0:
            raise ValueError(f"floor={self.floor}: it is a share from 0 to 1, or a number of units")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: it is at least 1")
        if not self.max_error > 0:
            raise ValueError(f"max-error={self.max_error:g}: it is more than 0")

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """What may be kept."""
        given = {"macs": self.macs, "params": self.params, "size": self.size}
        return tuple(budget(cost, written) for cost, written in given.items() if written is not None)

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        if CRITERIA[self.criterion].needs_data:
            context.need("calibration", self)
        report = Report()
        for weight in unpack(program, self.name):
            report.applied(weight, "computed once, as a weight of its own")
        groups = find_groups(program)
        if self.strict:
            refuse_unknown(groups)
        plan = Plan(
            ratio=self.ratio,
            budgets=self.budgets,
            ranking=self.ranking if self.ratio is not None or self.budgets else "auto",
            criterion=self.criterion,
            reduction=self.reduction,
            normalise=self.normalise,
            multiple=Multiple(self.multiple, getattr(context.target, "lanes", None)),
            floor=self.floor,
            max_error=self.max_error / self.steps,
            steps=self.steps,
            schedule=self.schedule,
            repair=self._method(context),
        )
        refused = refusals(program, groups, self.only, self.skip, self.attention)
        pruning = Pruning(self, plan, program, context, groups, refused)
        for step in range(1, self.steps + 1):
            pruning.step(step)
        pruning.report(report)
        return report

    def _method(self, context: Context) -> Method | None:
        """How to mend."""
        if self.repair == "auto":
            return None if context.calibration is None else "reconstruct"
        if self.repair == "none":
            return None
        context.need("calibration", self)
        return self.repair
