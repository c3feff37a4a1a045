"""Level the weights of neighbouring layers, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shave.ir.program import Program
from shave.passes.base import Context, Exactness, Pass
from shave.passes.quantize.links import FACTORS, find
from shave.passes.report import Report
from shave.passes.stages import Stage

_SWEEPS = 20
_SETTLED = 1e-3


@dataclass(frozen=True)
class Equalise(Pass):
    """Level the ranges of the weights that make a channel and of those that read it.

    The channels between two layers are scaled until both sides are as large, which serves weights that share one scale
    (M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", ICCV 2019, section 4.1). It needs no data and changes nothing beyond rounding.
    """

    name = "equalise"
    exactness = Exactness.EXACT
    requires = Stage.FLOAT

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        links = find(program, report.skipped)
        totals = {
            link.value: torch.ones(link.value.meta["val"].shape[link.axis], dtype=torch.float64) for link in links
        }
        for _ in range(_SWEEPS):
            moved = 0.0
            with program.rewrite(by=self.name) as rewriter:
                links = find(program, lambda *_: None)
                for link in links:
                    made, read = link.made(program), link.magnitudes(program)
                    factors = torch.where((made > 0) & (read > 0), (made / read).sqrt(), 1.0).clamp(*FACTORS)
                    change = float(factors.log().abs().max())
                    if change > _SETTLED:
                        link.scale(program, rewriter, factors)
                        totals[link.value] *= factors
                        moved = max(moved, change)
            if moved <= _SETTLED:
                break
        for link in links:
            factors = totals[link.value]
            if bool((factors == 1).all()):
                report.skipped(link.value, "its channels are level already")
            else:
                low, high = float(factors.min()), float(factors.max())
                report.applied(link.value, f"channels of {link.producer.name} divided by {low:.3g} to {high:.3g}")
        return report
