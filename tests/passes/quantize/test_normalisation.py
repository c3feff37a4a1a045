from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from shave.passes.quantize.normalisation import decomposed
from tests.passes.contract import run_pass
from tests.passes.quantize.nets import batches, transformer

FORMS = ("mul", "pow", "twice", "var", "rms", "l2", "moments")


def _in_norm(node: fx.Node) -> bool:
    return any("norms" in path for path, _ in (node.meta.get("nn_module_stack") or {}).values())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_and_nothing_else(form: str) -> None:
    program = transformer(form)
    found = decomposed(program)
    inside = {node for node in program.calls if _in_norm(node)}
    assert found.keys() <= inside
    # The scale and shift behind the division are pointwise like any others.
    left = {op_name(node) for node in inside - found.keys()}
    assert left <= {"aten.mul", "aten.add"}
    assert len(set(found.values())) == 2


@pytest.mark.parametrize("form", ["mul", "rms", "moments"])
def test_no_statistic_is_taken_of_integers(form: str) -> None:
    program = transformer(form)
    inner = {node.name for node in decomposed(program)}
    result, report = run_pass("quantize{correct-bias=false}", program, calibration=batches(program))
    nodes = {node.name: node for node in result.calls}
    for name in inner:
        assert not any("dequantize" in op_name(each) for each in nodes[name].all_input_nodes), name
    texts = {entry.node: entry.text for entry in report.skipped}
    assert all("part of a normalisation" in texts[name] for name in inner)


def test_a_softmax_written_out() -> None:
    class Softmax(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            e = torch.exp(x - x.amax(-1, keepdim=True))
            return e / e.sum(-1, keepdim=True)

    program = trace(Softmax(), (torch.randn(2, 5),))
    assert {op_name(node) for node in decomposed(program)} == {"aten.sub", "aten.exp", "aten.sum", "aten.div"}


def test_roots_of_other_things_are_none() -> None:
    class Roots(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.abs().sqrt() / x.mean(-1, keepdim=True) + (x.square() + x).sqrt()

    assert not decomposed(trace(Roots(), (torch.rand(2, 5),)))
