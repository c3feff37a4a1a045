"""Small programs and passes that the tests of the framework run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import fx, nn

from shave.ir.from_torch import trace
from shave.ir.program import Program
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.report import Report
from shave.passes.stages import Stage

aten = torch.ops.aten


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


class Net(nn.Module):
    """Two blocks with unequal odd sizes, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block(3, 5)
        self.second = Block(5, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def net_program() -> Program:
    """A program of its own for each caller, of equal weights."""
    return _traced().clone()


@cache
def _traced() -> Program:
    torch.manual_seed(0)
    return trace(Net(), (torch.randn(2, 3, 9, 11),))


def relus(program: Program) -> list[fx.Node]:
    return [node for node in program.calls if node.target is aten.relu.default]


def replace_relus(program: Program, by: str, target: Any, *arguments: Any) -> Report:
    report = Report()
    with program.rewrite(by=by) as rewriter:
        for node in relus(program):
            new = rewriter.call(target, (node.args[0], *arguments), before=node, sources=[node])
            rewriter.replace(node, new)
            report.applied(node, f"became {new.name}")
    return report


@dataclass(frozen=True)
class ReluToClamp(Pass):
    """Write relu as clamp_min: exact."""

    name: ClassVar[str] = "relu-to-clamp"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def apply(self, program: Program, context: Context) -> Report:
        return replace_relus(program, self.name, aten.clamp_min.default, 0)


@dataclass(frozen=True)
class ReluToSilu(Pass):
    """Replace relu by silu: lossy."""

    name: ClassVar[str] = "relu-to-silu"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    def apply(self, program: Program, context: Context) -> Report:
        return replace_relus(program, self.name, aten.silu.default)


@dataclass(frozen=True)
class ScaleWeight(Pass):
    """Multiply the last weight matrix, and claim that nothing changed."""

    name: ClassVar[str] = "scale-weight"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    factor: float = 2.0

    def apply(self, program: Program, context: Context) -> Report:
        report = Report()
        linear = next(node for node in program.calls if node.target is aten.linear.default)
        with program.rewrite(by=self.name) as rewriter:
            weight = linear.args[1]
            assert isinstance(weight, fx.Node)
            rewriter.set_weight(linear, weight, program.weight(weight) * self.factor)
        report.applied(linear, f"weight times {self.factor}")
        return report


@dataclass(frozen=True)
class ScaleQuietly(ScaleWeight):
    """The same as lossy, without a word in the report."""

    name: ClassVar[str] = "scale-quietly"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    def apply(self, program: Program, context: Context) -> Report:
        super().apply(program, context)
        return Report()


@dataclass(frozen=True)
class Idle(Pass):
    """Do nothing."""

    name: ClassVar[str] = "idle"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def apply(self, program: Program, context: Context) -> Report:
        report = Report()
        for node in relus(program):
            report.skipped(node, "idle passes do nothing")
        return report


@dataclass(frozen=True)
class Boast(Idle):
    """Do nothing, and claim to have done it."""

    name: ClassVar[str] = "boast"

    def apply(self, program: Program, context: Context) -> Report:
        report = Report()
        report.applied(relus(program)[0], "improved beyond measure")
        return report


@dataclass(frozen=True)
class Fail(Pass):
    """Change something, then fail."""

    name: ClassVar[str] = "fail"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    message: str = "no reason"

    def apply(self, program: Program, context: Context) -> Report:
        replace_relus(program, self.name, aten.silu.default)
        raise RuntimeError(self.message)


@dataclass(frozen=True)
class Corrupt(Pass):
    """Leave a program whose meta data is wrong."""

    name: ClassVar[str] = "corrupt"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def apply(self, program: Program, context: Context) -> Report:
        del relus(program)[0].meta["val"]
        return Report()


@dataclass(frozen=True)
class NeedsData(Pass):
    """Go through the calibration data and record the mean of the first input."""

    name: ClassVar[str] = "needs-data"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    fail: bool = False

    def apply(self, program: Program, context: Context) -> Report:
        report = Report()
        batches = [inputs[0] for inputs in context.batches(program, self)]
        report.metrics["batches"] = len(batches)
        report.metrics["mean"] = float(torch.cat(batches).mean())
        if self.fail:
            raise RuntimeError(f"the mean is {report.metrics['mean']:.6f}")
        return report


@dataclass(frozen=True)
class Quantize8(Pass):
    """Quantize the output of each relu to 8 bits."""

    name: ClassVar[str] = "quantize8"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    requires: ClassVar[Stage] = Stage.FLOAT
    ensures: ClassVar[Stage | None] = Stage.QUANTIZED

    def apply(self, program: Program, context: Context) -> Report:
        import torch.ao.quantization.fx._decomposed  # registers the operators

        quantized = torch.ops.quantized_decomposed
        report = Report()
        how = (0.05, 0, 0, 255, torch.uint8)
        with program.rewrite(by=self.name) as rewriter:
            for node in relus(program):
                before = node.next
                narrow = rewriter.call(
                    quantized.quantize_per_tensor.default, (node, *how), before=before, sources=[node]
                )
                wide = rewriter.call(
                    quantized.dequantize_per_tensor.default, (narrow, *how), before=before, sources=[node]
                )
                rewriter.replace(node, wide)
                rewriter.set_argument(narrow, 0, node)
                report.applied(node, "to uint8")
        return report


@dataclass(frozen=True)
class FloatOnly(Idle):
    """Takes programs in floating point alone."""

    name: ClassVar[str] = "float-only"
    requires: ClassVar[Stage] = Stage.FLOAT


@dataclass(frozen=True)
class QuantizeUndeclared(Quantize8):
    """Quantize without declaring it."""

    name: ClassVar[str] = "quantize-undeclared"
    ensures: ClassVar[Stage | None] = None


@dataclass(frozen=True)
class Tuned(Pass):
    """Has an option of every type."""

    name: ClassVar[str] = "tuned"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    ratio: float = option(0.5, search=(0.25, 0.5, 0.75), help="share of channels to remove")
    rank: int = 4
    fast: bool = False
    label: str = "plain"
    criterion: Literal["l1", "l2", "fpgm"] = "l1"
    layers: tuple[str, ...] = ()
    kernel: tuple[int, int] = (3, 3)
    budget: Mapping[str, float] = option({}, help="what to keep")
    limit: int | None = None
    amount: int | float | Literal["auto"] = "auto"
    nested: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise ValueError(f"ratio={self.ratio} is below 0")

    def apply(self, program: Program, context: Context) -> Report:
        return Report()


@dataclass(frozen=True)
class NeedsRank(Pass):
    """Has an option without default."""

    name: ClassVar[str] = "needs-rank"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    rank: int = option(help="rank to factorize to")

    def apply(self, program: Program, context: Context) -> Report:
        return Report()
