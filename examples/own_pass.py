"""A pass of your own, from its definition to its report.

    python -m examples.own_pass

``hard-activations`` replaces SiLU and sigmoid by their piecewise linear forms, which need no exponential (the trade of
MobileNetV3, https://arxiv.org/abs/1905.02244). It changes the outputs, so it is declared lossy, and the manager
measures by how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

import shave
from shave.ir.program import Program
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.explain import explain
from shave.passes.report import Report
from shave.passes.scope import select
from shave.passes.stages import Stage

aten = torch.ops.aten

HARD = {
    aten.silu.default: aten.hardswish.default,
    aten.sigmoid.default: aten.hardsigmoid.default,
}


@dataclass(frozen=True)
class HardActivations(Pass):
    """Replace SiLU and sigmoid by hardswish and hardsigmoid.

    hardsigmoid(x) = clamp(x + 3, 0, 6) / 6 differs from sigmoid(x) by at most 0.070; hardswish(x) = x hardsigmoid(x)
    differs from silu(x) = x sigmoid(x) by at most 0.143.
    """

    name: ClassVar[str] = "hard-activations"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    requires: ClassVar[Stage] = Stage.FLOAT

    layers: tuple[str, ...] = option((), help="scopes to work on; by default everywhere")
    skip: tuple[str, ...] = option((), help="scopes to leave as they are")

    def apply(self, program: Program, context: Context) -> Report:
        """Swap the operators; shapes and arguments stay the same."""
        report = Report()
        candidates = [node for node in program.calls if node.target in HARD]
        chosen = select(program, candidates, self.layers, self.skip)
        with program.rewrite(by=self.name) as rewriter:
            for node in candidates:
                if node not in chosen:
                    report.skipped(node, "not in the scope given")
                    continue
                hard = rewriter.call(HARD[node.target], node.args, before=node, sources=[node])  # type: ignore[index]
                rewriter.replace(node, hard)
                report.applied(node, f"became {hard.name}")
        return report


def main() -> None:
    """Run the pass on a small network and print what it did."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.SiLU(),
        torch.nn.Conv2d(8, 8, 3), torch.nn.SiLU(),
        torch.nn.Flatten(), torch.nn.Linear(8 * 12 * 12, 10), torch.nn.Sigmoid(),
    )  # fmt: skip
    program = shave.trace(module, (torch.randn(1, 3, 16, 16),))
    manager = shave.PassManager(["simplify", HardActivations(skip=("7",))])
    smaller = manager.run(program)
    print("pipeline:", manager)
    for report in smaller.report:
        print("-", report)
    print("drift:", smaller.report[-1].drift["output"])
    for explanation in explain(smaller.report[-1:], "7"):
        print(explanation)
    print(smaller)


if __name__ == "__main__":
    main()
