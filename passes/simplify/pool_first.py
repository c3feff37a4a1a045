"""Average before a pointwise convolution instead of behind it: fewer pixels to convolve."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.ir.shapes import hints
from shave.passes.base import Context, Exactness, Pass
from shave.passes.report import Report

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")
_POOLS = ("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d")
_ADAPTIVE = ("aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d")


@dataclass(frozen=True)
class PoolFirst(Pass):
    """Move average pooling ahead of the 1x1 convolution whose output it alone reads.

    Both are linear, one over channels, one over pixels: mean(W x + b) = W mean(x) + b, as long as the weights of each
    mean add up to 1 or there is no b. The convolution then computes only the pixels that remain, a quarter of them
    where a DenseNet halves its maps.
    """

    name = "pool-first"
    exactness = Exactness.EXACT

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        with program.rewrite(by=self.name) as rewriter:
            for pool in program.calls:
                layer = _layer_of(pool)
                if layer is None or not pool.users:
                    continue
                if reason := _why_not(pool, layer):
                    report.skipped(pool, reason)
                    continue
                report.applied(pool, f"moved ahead of {layer.name}")
                _swap(rewriter, pool, layer)
        return report


def _layer_of(pool: fx.Node) -> fx.Node | None:
    """The convolution whose output an average pooling reads; None for anything else."""
    if op_name(pool) not in (*_POOLS, *_ADAPTIVE):
        return None
    source = argument(pool, "self")
    return source if source.op == "call_function" and op_name(source) in _CONVOLUTIONS else None


def _why_not(pool: fx.Node, layer: fx.Node) -> str:
    """Why a pooling must stay behind its convolution; empty if it need not."""
    weight, padding = argument(layer, "weight").meta["val"], argument(layer, "padding")
    padded = not isinstance(padding, str) and any(padding)  # "same" pads nothing for one tap
    if any(size != 1 for size in weight.shape[2:]) or any(s != 1 for s in argument(layer, "stride")) or padded:
        return f"{layer.name} ahead of it is not pointwise"
    if len(layer.users) > 1:
        return f"the output of {layer.name} ahead of it has other readers"
    if prod(hints(pool.meta["val"].shape)) >= prod(hints(layer.meta["val"].shape)):
        return "it does not make the map smaller"
    if argument(layer, "bias") is not None and not _is_mean(pool):
        return f"its windows do not add up to one pixel, which would change the bias of {layer.name}"
    return ""


def _is_mean(pool: fx.Node) -> bool:
    """Whether the weights in each window add up to 1."""
    if op_name(pool) in _ADAPTIVE:
        return True
    divisor = None if op_name(pool) == "aten.avg_pool1d" else argument(pool, "divisor_override")
    return divisor is None and not (any(argument(pool, "padding")) and argument(pool, "count_include_pad"))


def _swap(rewriter: Rewriter, pool: fx.Node, layer: fx.Node) -> None:
    source = argument(layer, "input")
    assert callable(pool.target)
    assert callable(layer.target)
    first = rewriter.call(pool.target, (source, *pool.args[1:]), pool.kwargs, before=pool, sources=[pool])
    second = rewriter.call(layer.target, (first, *layer.args[1:]), layer.kwargs, before=pool, sources=[layer, pool])
    rewriter.replace(pool, second)
    rewriter.erase(pool)
    rewriter.erase(layer)
