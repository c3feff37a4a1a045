"""Hand large channels of activations over to the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shave.ir.program import Program
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.quantize.calibrate import observe, samples_of
from shave.passes.quantize.links import FACTORS, find
from shave.passes.quantize.observers.magnitude import ChannelMaxima
from shave.passes.report import Report
from shave.passes.stages import Stage


@dataclass(frozen=True)
class Smooth(Pass):
    """Scale the channels of activations so that all of them use the range of the integers.

    A channel of largest magnitude a, read by weights of largest magnitude w, is divided by a**strength / w**(1 -
    strength); what makes it takes that in, and so do the weights that read it (G. Xiao, J. Lin, M. Seznec, H. Wu, J.
    Demouth, S. Han, "SmoothQuant", ICML 2023, section 4). It changes nothing beyond rounding.
    """

    name = "smooth"
    exactness = Exactness.EXACT
    requires = Stage.FLOAT

    strength: float = option(0.5, search=(0.5, 0.25, 0.75), help="how much of it goes to the weights: 0 to 1")
    samples: int = option(300, help="calibration samples to use at most")

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, but lies from 0 to 1")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, but is 1 at least")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        links = find(program, report.skipped)
        maxima = {link.value: ChannelMaxima(link.axis) for link in links}
        observe(program, maxima, samples_of(context.batches(program, self), program, self.samples))
        with program.rewrite(by=self.name) as rewriter:
            for link in links:
                seen, read = maxima[link.value].largest, link.magnitudes(program)
                factors = seen**self.strength / read ** (1 - self.strength)
                factors = torch.where((seen > 0) & (read > 0), factors, 1.0)
                factors = (factors / factors.log().mean().exp()).clamp(*FACTORS)
                if float(factors.max() / factors.min()) < 1.01:
                    report.skipped(link.value, "its channels are level already")
                    continue
                link.scale(program, rewriter, factors)
                low, high = float(factors.min()), float(factors.max())
                report.applied(link.value, f"channels of {link.producer.name} divided by {low:.3g} to {high:.3g}")
        return report
