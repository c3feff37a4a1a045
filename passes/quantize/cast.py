"""Compute in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.quantize.calibrate import observe, samples_of
from shave.passes.quantize.observers.magnitude import Extremes
from shave.passes.quantize.placement import selectable
from shave.passes.quantize.table import PRODUCTS
from shave.passes.report import Report
from shave.passes.scope import select
from shave.passes.stages import Stage

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_TO = torch.ops.aten._to_copy.default


@dataclass(frozen=True)
class Cast(Pass):
    """Store weights and compute products in float16 or bfloat16.

    What a product reads is cast, and what it gives is cast back, so that all else stays in float32. A product whose
    values or weights leave the range of the dtype, on calibration data and with room to spare, stays in float32.
    """

    name = "cast"
    exactness = Exactness.LOSSY
    requires = Stage.FLOAT

    dtype: Literal["float16", "bfloat16"] = option("float16", search=("float16", "bfloat16"), help="what to compute in")
    room: float = option(4.0, help="how many times the largest value seen must fit")
    samples: int = option(300, help="calibration samples to use at most")
    layers: tuple[str, ...] = option((), help="scopes to cast; all products by default")
    skip: tuple[str, ...] = option((), help="scopes to leave in float32")

    def __post_init__(self) -> None:
        if not self.room >= 1:
            raise ValueError(f"room is {self.room}, but is 1 at least")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, but is 1 at least")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        candidates = [node for node in selectable(program.calls) if op_name(node) in PRODUCTS]
        chosen = [node for node in select(program, candidates, self.layers, self.skip) if _is_float(node)]
        values = {value: Extremes() for node in chosen for value in [node, *node.all_input_nodes] if _is_float(value)}
        observe(program, values, samples_of(context.batches(program, self), program, self.samples))
        dtype = _DTYPES[self.dtype]
        limit = torch.finfo(dtype).max / self.room
        narrow: dict[fx.Node, fx.Node] = {}
        large = {
            node: [each for each in [*node.all_input_nodes, node] if each in values and values[each].largest > limit]
            for node in chosen
        }
        with program.rewrite(by=self.name) as rewriter:
            for node in chosen:
                if large[node]:
                    what = f"{large[node][0].name} reaches {values[large[node][0]].largest:.3g}"
                    report.skipped(node, f"{what}, and {self.dtype} ends at {torch.finfo(dtype).max:.3g}")
                    continue
                operands = [each for each in node.all_input_nodes if _is_float(each)]
                self._cast(program, rewriter, node, operands, dtype, narrow)
                report.applied(node, f"computed in {self.dtype}")
            rewriter.infer_all()
        return report

    def _cast(
        self,
        program: Program,
        rewriter: Rewriter,
        node: fx.Node,
        operands: list[fx.Node],
        dtype: torch.dtype,
        narrow: dict[fx.Node, fx.Node],
    ) -> None:
        for value in operands:
            if value.op == "get_attr":
                rewriter.set_weight(node, value, program.weight(value).detach().to(dtype))
                continue
            if value not in narrow:
                first = next(each for each in program.graph.nodes if each.op == "call_function")
                before = value.next if value.op == "call_function" else first
                narrow[value] = rewriter.call(_TO, (value,), {"dtype": dtype}, before=before, sources=[value])
            node.replace_input_with(value, narrow[value])
        wide = rewriter.call(_TO, (node,), {"dtype": torch.float32}, before=node.next, sources=[node])
        rewriter.replace(node, wide)


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
