"""Every emitted operator against torch eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shave.backends.tvm.emit.registry import emits
from shave.ir.from_torch import trace
from tests.backends.tvm.cases import FAMILIES, Case
from tests.backends.tvm.compiled import Compiled, worst


class _All(torch.nn.Module):
    """All cases of a family at once: one library instead of one per case."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = cases
        for i, case in enumerate(cases):
            for j, weight in enumerate(case.weights):
                self.register_buffer(f"case{i}_{j}", weight)

    def forward(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        remaining = list(inputs)
        results = []
        for i, case in enumerate(self.cases):
            given = [remaining.pop(0) for _ in case.inputs]
            result = case.call(*given, *(getattr(self, f"case{i}_{j}") for j in range(len(case.weights))))
            results.append(tuple(result) if isinstance(result, (tuple, list)) else (result,))
        return tuple(results)


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_compute_what_torch_computes(family: str) -> None:
    cases = FAMILIES[family]()
    module = _All(cases)
    inputs = tuple(x for case in cases for x in case.inputs)
    compiled = Compiled(trace(module, inputs))
    results = compiled(*inputs)
    wrong = {}
    for case, expected in zip(cases, module(*inputs), strict=True):
        for tensor in expected:
            error = worst(results.pop(0), tensor)
            if error > case.tolerance:
                wrong[case.name] = error
    assert not wrong


def test_an_operator_has_one_emitter() -> None:
    with pytest.raises(ValueError, match=r"two emitters for aten\.relu"):
        emits("aten.relu")(lambda emitter, node: None)
