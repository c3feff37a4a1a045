"""Inputs of layers to measure their errors on: real ones where there is data, else random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from shave.ir.program import Program
from shave.passes.base import Context
from shave.passes.probe import probe_inputs
from shave.passes.winograd.accuracy import MAX_INPUTS, Sample, sample
from shave.passes.winograd.layer import Layer


def samples(program: Program, layers: Sequence[Layer], context: Context) -> dict[fx.Node, Sample]:
    """A sample for each layer, by its node.

    With calibration data from what the layer reads when the program runs on its first batch; without, or where that
    makes the layer give nothing but zeros, from the standard normal distribution.
    """
    found: dict[fx.Node, Sample] = {}
    if context.calibration is not None:
        collector = _Collector(program, layers)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            collector.run(*probe_inputs(program, context.calibration, context.seed))
        found = collector.found
    generator = context.generator()
    for layer in layers:
        if layer.node not in found:
            d = layer.direct
            x = torch.randn(
                1, d.in_channels, *(min(size, MAX_INPUTS) for size in (d.height, d.width)), generator=generator
            )
            made = _sample(program, layer, x)
            if made is not None:
                found[layer.node] = made
    return found


def _sample(program: Program, layer: Layer, x: torch.Tensor) -> Sample | None:
    height, width = layer.padding
    return sample(functional.pad(x[:1], (width, width, height, height)), program.weight(layer.weight).detach())


class _Collector(fx.Interpreter):
    """Runs a program, and cuts a sample out of what each layer reads."""

    def __init__(self, program: Program, layers: Sequence[Layer]) -> None:
        super().__init__(program.module)
        self._program = program
        self._layers: Mapping[fx.Node, Layer] = {layer.node: layer for layer in layers}
        self.found: dict[fx.Node, Sample] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n in self._layers:
            layer = self._layers[n]
            made = _sample(self._program, layer, self.env[layer.source])
            if made is not None:
                self.found[n] = made
        return super().run_node(n)
