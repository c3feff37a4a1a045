"""Take the mean error of each integer product out again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.factorize.layer import value_of
from shave.passes.quantize.affine import Affine
from shave.passes.quantize.calibrate import samples_of
from shave.passes.quantize.products import Product, affine_of, product_of
from shave.passes.quantize.table import PRODUCTS
from shave.passes.report import Report
from shave.passes.stages import Stage


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Move the biases of integer products so that their means are those of the float program.

    Rounded weights and clipped activations shift what a layer gives on the mean; the shift is measured layer by layer
    on what the layer reads in the float program, and taken out as far as it is more than the noise of the sample (M.
    Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", ICCV 2019, section 4.2). Put it behind ``quantize`` in one pipeline.
    """

    name = "correct-bias"
    exactness = Exactness.LOSSY
    requires = Stage.QUANTIZED

    samples: int = option(300, help="calibration samples to use at most")

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, but is 1 at least")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        if context.reference is None:
            raise PipelineError(f"pass {self.name} needs the float program: run it in one pipeline with quantize")
        report = Report()
        batches = samples_of(context.batches(program, self), program, self.samples)
        correct(program, context.reference, batches, self.name, report)
        return report


def correct(
    program: Program, reference: Program, batches: Iterable[Sequence[torch.Tensor]], by: str, report: Report
) -> None:
    """Correct the biases of a quantized program.

    Args:
        program: Is changed.
        reference: The program that it was made from, with calls of the same names.
        batches: Inputs.
        by: The pass on whose behalf.
        report: Told of each product.
    """
    calls = {node.name: node for node in reference.calls}
    found: dict[fx.Node, _Shift] = {}
    for node in program.calls:
        if op_name(node) not in PRODUCTS:
            continue
        product = product_of(program, node)
        twin = calls.get(node.name)
        if product is None:
            report.skipped(node, "two activations: there is no bias")
        elif twin is None or twin.target is not node.target:
            report.skipped(node, "the float program has no such call")
        elif product.bias is None and not product.can_take_bias:
            report.skipped(node, "no bias is added to it")
        else:
            found[twin] = _Shift(
                program, product, _bias_of(program, product) - _bias_of(reference, product_of(reference, twin))
            )
    with torch.no_grad():
        watcher = _Watcher(reference.module, found)
        for batch in batches:
            watcher.run(*batch)
    with program.rewrite(by=by) as rewriter:
        for shift in found.values():
            shift.apply(rewriter, report)


class _Shift:
    """The mean of what a product loses, over samples."""

    def __init__(self, program: Program, product: Product, corrected: torch.Tensor) -> None:
        self._program = program
        self._corrected = corrected
        self.product = product
        weight: fx.Node = argument(product.node, product.weight)
        self._weight = value_of(program, weight).detach()
        self._affine: Affine | None = affine_of(argument(product.node, product.data))
        channels = int(product.node.meta["val"].shape[product.axis])
        self._count = 0
        self._sum, self._squares, self._power = torch.zeros(3, channels, dtype=torch.float64)

    def add(self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], want: torch.Tensor) -> None:
        """Compute the product of one batch in integers and compare."""
        names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
        values = dict(zip(names, args, strict=False)) | dict(kwargs)
        values[self.product.weight] = self._weight
        if self._affine is not None:
            values[self.product.data] = self._affine.round(values[self.product.data])
        assert callable(node.target)
        got = node.target(**values)
        error = (want - got).double().movedim(self.product.axis, -1)
        samples = error.reshape(error.shape[0], -1, error.shape[-1]).mean(1) if error.dim() > 1 else error[None]
        self._count += len(samples)
        self._sum += samples.sum(0)
        self._squares += samples.square().sum(0)
        self._power += want.double().square().movedim(self.product.axis, -1).flatten(0, -2).mean(0) * len(samples)

    def apply(self, rewriter: Rewriter, report: Report) -> None:
        node, bias = self.product.node, self.product.bias
        if not self._count:
            report.skipped(node, "nothing went through it")
            return
        mean = self._sum / self._count - self._corrected
        noise = (self._squares / self._count - (self._sum / self._count) ** 2).clamp_min(0) / max(self._count - 1, 1)
        delta = mean * (1 - noise / mean.square().clamp_min(1e-300)).clamp_min(0)
        size = float((delta.square().mean() / (self._power / self._count).mean().clamp_min(1e-300)).sqrt())
        if not delta.any() or not delta.isfinite().all():
            report.skipped(node, "its mean error is within the noise")
            return
        if bias is not None:
            old = self._program.weight(bias[0])
            rewriter.set_weight(bias[1], bias[0], (old.detach().double() + delta).to(old.dtype))
        else:
            weight = argument(node, self.product.weight)
            stored = weight if weight.op == "get_attr" else weight.args[0]
            name = f"{str(stored.target).rpartition('.')[0]}.bias".lstrip(".")
            fresh = rewriter.weight(name, delta.to(self._weight.dtype), sources=[node])
            position = [parameter.name for parameter in node.target._schema.arguments].index("bias")  # type: ignore[union-attr]
            rewriter.set_argument(node, position, fresh)
        report.applied(node, f"mean error of {100 * size:.2g} % taken out")


def _bias_of(program: Program, product: Product | None) -> torch.Tensor:
    if product is None or product.bias is None:
        return torch.zeros((), dtype=torch.float64)
    return program.weight(product.bias[0]).detach().double()


class _Watcher(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, shifts: Mapping[fx.Node, _Shift]) -> None:
        super().__init__(module)
        self._shifts = shifts

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._shifts:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self._shifts[n].add(n, args, kwargs, value)
        return value
