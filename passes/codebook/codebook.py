"""Keep weights as small numbers, each of which stands for a value in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import Literal

import numpy as np
import torch
from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.lookup import pack_codes
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter, as_trainable
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.codebook import finetune, tables, weights
from shave.passes.codebook.bias import Bias, bias_of
from shave.passes.codebook.fit import Fitted, energy, fit, plain
from shave.passes.codebook.tables import Array, Scheme
from shave.passes.codebook.weights import Weight
from shave.passes.factorize import layer as layers
from shave.passes.factorize.metric import Metric
from shave.passes.report import Report
from shave.passes.scope import select
from shave.passes.stages import Stage
from shave.passes.statistics import input_moments

MAX_FEATURES = 4608
"""Layers that read more are coded by their weights alone: the moments would take over 170 MB."""
DECIBELS_A_BIT = 6.02
"""What a bit more for each element gains; a table for each channel must gain more with as many bytes."""
MAX_GAIN = 12.0
"""In decibels; tables that would have to gain more are not tried."""
_DEFAULT_BITS = 4


@dataclass(frozen=True)
class Codebook(Pass):
    """Keep weights as codes of a few bits, each of which stands for a value in a table.

    Weights become ``shave::lookup`` calls, which artifacts keep in that small form. Tables come from k-means or
    quantiles, or hold two or three values (binary, ternary). With calibration data codes and tables are fitted to the
    outputs of each layer, and its bias makes up for the mean that is left. See ``docs/codebook.md``.
    """

    name = "codebook"
    exactness = Exactness.LOSSY
    requires = Stage.FLOAT | Stage.QUANTIZED
    ensures = Stage.QUANTIZED

    scheme: Scheme = option("kmeans", help="where the values of the table come from")
    bits: int | None = option(
        None, search=(8, 6, 5, 4, 3, 2), help="of a code, 1 to 8; none: 4, or what binary and ternary take"
    )
    init: Literal["density", "forgy", "linear"] = option(
        "density", help="where k-means starts: quantiles, values at random, or equal distances"
    )
    tables: Literal["auto", "tensor", "channel"] = option(
        "auto", help="one for the weight or one for each output channel; auto: what errs less for its bytes"
    )
    data: bool = option(True, help="whether to use calibration data where there is some")
    finetune: Literal["none", "outputs", "trainer"] = option(
        "none", help="train the tables: for the program's outputs on calibration data, or by the trainer"
    )
    steps: int = option(200, help="batches that finetune=outputs goes through")
    layer_bits: Mapping[str, int] = option({}, help="bits for scopes, in place of bits; the last that matches counts")
    layers: tuple[str, ...] = option((), help="scopes to work on; all by default")
    skip: tuple[str, ...] = option((), help="scopes to leave as they are")

    def __post_init__(self) -> None:
        for where, bits in {"bits": self.bits, **self.layer_bits}.items():
            if bits is not None and not 1 <= bits <= 8:
                raise ValueError(f"{where} is {bits}, but lies between 1 and 8")
        if self.scheme in ("binary", "ternary") and (self.bits is not None or self.layer_bits):
            raise ValueError(f"{self.scheme} decides on the bits itself: leave bits and layer-bits out")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but is 1 at least")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        teacher = program.clone()
        found = self._weights(program, report)
        bits = self._bits(program, [weight for weight, _ in found])
        metrics = self._metrics(program, [weight for weight, _ in found], context)
        made: list[fx.Node] = []
        before = after = 0
        worst = float("inf")
        with program.rewrite(by=self.name) as rewriter:
            for weight, node in context.track(found, f"{self.name}: weights"):
                coded = self._code(weight, bits[weight.node], metrics.get(weight.node, Metric()), context)
                if coded.bytes >= _bytes(weight.tensor):
                    text = f"{weight.tensor.numel()} values would take {coded.bytes} bytes instead of"
                    report.skipped(node, f"its {text} {_bytes(weight.tensor)}")
                    continue
                made.append(_rewrite(rewriter, weight, coded))
                before, after = before + _bytes(weight.tensor), after + coded.bytes
                worst = min(worst, coded.ratio)
                for reader in weight.readers:
                    report.applied(reader, coded.text)
        if made:
            report.metrics |= {"bytes_before": before, "bytes_after": after}
            if isfinite(worst):
                report.metrics["worst_sqnr"] = worst
            self._finetune(program, made, teacher, context, report)
        order = {node.name: place for place, node in enumerate(teacher.graph.nodes)}
        report.entries.sort(key=lambda entry: order[entry.node])
        return report

    def _weights(self, program: Program, report: Report) -> list[tuple[Weight, fx.Node]]:
        """Each weight once, with the first of the layers that read it."""
        chosen = select(program, filter(weights.is_candidate, program.calls), self.layers, self.skip)
        found: dict[fx.Node, tuple[Weight, fx.Node]] = {}
        for node in chosen:
            weight = weights.read(program, node, chosen)
            if isinstance(weight, str):
                report.skipped(node, weight)
            else:
                found.setdefault(weight.node, (weight, node))
        return list(found.values())

    def _bits(self, program: Program, found: Sequence[Weight]) -> dict[fx.Node, int]:
        bits = {weight.node: _DEFAULT_BITS if self.bits is None else self.bits for weight in found}
        readers = {reader: weight.node for weight in found for reader in weight.readers}
        for scope, number in self.layer_bits.items():
            for reader in select(program, readers, (scope,)):
                bits[readers[reader]] = number
        return bits

    def _metrics(self, program: Program, found: Sequence[Weight], context: Context) -> dict[fx.Node, Metric]:
        """By weight what errors are measured by, where there are data and one linear layer or convolution reads it."""
        if context.calibration is None or not self.data:
            return {}
        read = {w.node: layers.read(program, w.readers[0]) for w in found if layers.is_candidate(w.readers[0])}
        measured = {
            node: layer
            for node, layer in read.items()
            if isinstance(layer, layers.Layer) and layer.features <= MAX_FEATURES
        }
        readers = {
            node: (layer.source, layer.features, layer.sampler(context.seed)) for node, layer in measured.items()
        }
        by_layer = {measured[node].node: how for node, how in readers.items()}
        moments = input_moments(program, by_layer, context.batches(program, self))
        return {node: Metric.of(moments.pop(layer.node)) for node, layer in measured.items()}

    def _code(self, weight: Weight, bits: int, metric: Metric, context: Context) -> _Coded:
        matrix = weight.matrix.numpy()
        bias = None if metric.mean is None else bias_of(weight.readers[0])
        moments = None
        if metric.covariance is not None and metric.mean is not None:
            moments = metric.covariance.numpy()
            if bias is None:
                moments = moments + np.outer(metric.mean, metric.mean)
        generator = context.generator()

        def draw(count: int, below: int) -> Array:
            return torch.randperm(below, generator=generator)[:count].numpy()

        def tabled(per_channel: bool) -> _Coded:
            importance = None if moments is None or not moments.any() else moments.diagonal()
            start = tables.make(matrix, importance, self.scheme, bits, self.init, draw, per_channel=per_channel)
            fitted = plain(matrix, start, None) if moments is None else fit(matrix, start, moments)
            return _Coded(weight, matrix, moments, metric, bias, fitted, per_channel)

        if self.tables != "auto":
            return tabled(self.tables == "channel")
        whole = tabled(False)
        cost = DECIBELS_A_BIT * 8 * (len(matrix) - 1) * whole.table_bytes / matrix.size
        if not 0 < cost < MAX_GAIN or whole.error == 0:
            return whole
        split = tabled(True)
        return split if split.ratio > whole.ratio + cost else whole

    def _finetune(
        self, program: Program, made: Sequence[fx.Node], teacher: Program, context: Context, report: Report
    ) -> None:
        if self.finetune == "outputs":
            batches = list(context.batches(program, self))
            before, after = finetune.by_outputs(program, made, teacher, batches, self.steps)
            report.metrics |= {"output_error_before_finetune": before, "output_error": after}
        elif self.finetune == "trainer":
            trainer = context.need("trainer", self)
            finetune.by_trainer(program, made, trainer)
            if not all(program.weight(node).isfinite().all() for node in made):
                raise PipelineError(f"pass {self.name}: the trainer has left tables that are not finite")


@dataclass(frozen=True)
class _Coded:
    """A weight in its small form.

    Attributes:
        weight: What it was.
        matrix: Its values.
        moments: What errors of its columns do to the output; None without data.
        metric: Where that comes from.
        bias: The bias of its layer; None if it has no place for one, or without data.
        fitted: Tables and codes.
        per_channel: Whether each channel has a table of its own.
    """

    weight: Weight
    matrix: Array
    moments: Array | None
    metric: Metric
    bias: Bias | None
    fitted: Fitted
    per_channel: bool

    @property
    def error(self) -> float:
        return self.fitted.error

    @property
    def ratio(self) -> float:
        """Energy of the output, or without data of the weights, to that of their error, in decibels."""
        return _decibels(energy(self.matrix, self.moments), self.error)

    @property
    def table_bytes(self) -> int:
        """Bytes of one table."""
        return int(self.fitted.tables.values.shape[1]) * self.weight.tensor.element_size()

    @property
    def bytes(self) -> int:
        bits = self.fitted.tables.bits
        return -(-self.matrix.size * bits // 8) + len(self.fitted.tables.values) * self.table_bytes

    @property
    def decoded(self) -> Array:
        return self.fitted.tables.decode(self.fitted.codes)

    @property
    def text(self) -> str:
        tables = self.fitted.tables
        entries = f"{tables.values.shape[1]} values" + " per channel" * self.per_channel
        own = _decibels(energy(self.matrix, None), energy(self.matrix - self.decoded, None))
        text = f"{tables.bits} bits for {entries}: {self.bytes} bytes instead of {_bytes(self.weight.tensor)}; "
        text += f"SQNR {own:.1f} dB of the weights"
        if self.moments is not None:
            text += f", {self.ratio:.1f} dB of the output by data"
        return f"{text} ({self.metric.note})" if self.metric.note else text


def _rewrite(rewriter: Rewriter, weight: Weight, coded: _Coded) -> fx.Node:
    """Let the layers read a lookup; give the node of its table."""
    old, values = weight.tensor, coded.fitted.tables
    codes = weight.restored(torch.from_numpy(coded.fitted.codes))
    table = torch.from_numpy(values.values if coded.per_channel else values.values[0]).to(old.dtype)
    name = str(weight.node.target)
    packed = rewriter.weight(f"{name}_codes", pack_codes(codes, values.bits), sources=[weight.node])
    book = rewriter.weight(f"{name}_codebook", as_trainable(table.contiguous(), old), sources=[weight.node])
    arguments = (packed, book, values.bits, list(old.shape), weight.axis if coded.per_channel else None)
    first = min(weight.readers)
    made = rewriter.call(torch.ops.shave.lookup.default, arguments, before=first, sources=[weight.node])
    rewriter.replace(weight.node, made)
    if coded.bias is not None and coded.metric.mean is not None:
        shift = (torch.from_numpy(coded.matrix - coded.decoded) @ coded.metric.mean).to(old.dtype)
        coded.bias.shift(rewriter, shift, weight.node)
    return book


def _decibels(signal: float, noise: float) -> float:
    if noise <= 0 or signal <= 0:
        return float("inf") if noise <= 0 else float("-inf")
    return 10 * log10(signal / noise)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
