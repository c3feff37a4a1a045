"""Take the mean error of each integer product out again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.quantize.calibrate import samples_of
from shave.passes.quantize.layerwise import Loss, losses
from shave.passes.quantize.products import Product, product_of
from shave.passes.quantize.table import PRODUCTS
from shave.passes.report import Report
from shave.passes.stages import Stage


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Move the biases of integer products so that their means are those of the float program.

    Rounded weights and clipped activations shift what a layer gives on the mean; the shift is measured layer by layer
    on what the layer reads in the float program, and taken out as far as it is more than the noise of the sample (M.
    Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", ICCV 2019, section 4.2). ``quantize`` does so by itself; this is for other passes that round weights.
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
        found = losses(program, context.reference, batches)
        with program.rewrite(by=self.name) as rewriter:
            for node in program.calls:
                if op_name(node) in PRODUCTS:
                    loss = found.get(node.name)
                    text = correct(program, rewriter, node, loss, context.reference)
                    (report.applied if text.startswith("mean") else report.skipped)(node, text)
        return report


def correct(program: Program, rewriter: Rewriter, node: fx.Node, loss: Loss | None, reference: Program) -> str:
    """Correct the bias of one product; tells what was done (``mean error of ...``) or why nothing was.

    Args:
        program: Is changed.
        rewriter: Of that program.
        node: The product.
        loss: What it loses; None if it was not compared.
        reference: The float program, in which the call has the same name.
    """
    product = product_of(program, node)
    if product is None:
        return "two activations: there is no bias"
    if loss is None or not len(loss.mean):
        return "it is not computed in integers"
    if product.bias is None and not product.can_take_bias:
        return "no bias is added to it"
    twin = next(each for each in reference.calls if each.name == node.name)
    done = _bias_of(program, product) - _bias_of(reference, product_of(reference, twin))
    delta = loss.shift - done
    size = float((delta.square().mean() / max(loss.power, 1e-300)).sqrt())
    if size < 1e-7 or not delta.isfinite().all():
        return "its mean error is within the noise"
    if product.bias is not None:
        weight, reader = product.bias
        old = program.weight(weight)
        rewriter.set_weight(reader, weight, (old.detach().double() + delta).to(old.dtype))
    else:
        factor = argument(node, product.weight)
        stored = factor if factor.op == "get_attr" else factor.args[0]
        name = f"{str(stored.target).rpartition('.')[0]}.bias".lstrip(".")
        fresh = rewriter.weight(name, delta.to(node.meta["val"].dtype), sources=[node])
        names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
        rewriter.set_argument(node, names.index("bias"), fresh)
    return f"mean error of {100 * size:.2g} % taken out"


def _bias_of(program: Program, product: Product | None) -> torch.Tensor:
    if product is None or product.bias is None:
        return torch.zeros((), dtype=torch.float64)
    return program.weight(product.bias[0]).detach().double()
