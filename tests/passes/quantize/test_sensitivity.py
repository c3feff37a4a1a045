from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
import torch

import shave
from shave.ir.errors import PipelineError
from shave.passes.compare import difference
from shave.passes.quantize.sensitivity import scan
from shave.passes.quantize.sensitivity_chart import draw
from tests.passes.quantize.nets import batches, residual


def test_figures_are_those_of_programs_quantized_in_part() -> None:
    program = residual()
    data = batches(program)
    found = scan(program, "quantize{bits=5}", calibration=data, samples=32)
    names = [each.node for each in found]
    assert sorted(names) == ["conv2d", "conv2d_1", "conv2d_2", "linear"]
    assert [each.alone_db for each in found] == sorted(each.alone_db for each in found)
    want = torch.cat([program(*batch) for batch in data])  # type: ignore[misc]

    def ratio(text: str) -> float:
        result = shave.PassManager(text).run(program, calibration=data)
        return difference(want, torch.cat([result(*batch) for batch in data])).sqnr_db  # type: ignore[misc]

    modules = [each.names[1] for each in found]
    for place, each in enumerate(found):
        others = ", ".join(name for name in modules if name != each.names[1])
        assert each.alone_db == pytest.approx(ratio(f"quantize{{bits=5 skip=[{others}]}}"), abs=1e-6)
        assert each.without_db == pytest.approx(ratio(f"quantize{{bits=5 skip=[{each.names[1]}]}}"), abs=1e-6)
        skipped = ", ".join(modules[: place + 1])
        if place < len(found) - 1:
            assert each.cumulative_db == pytest.approx(ratio(f"quantize{{bits=5 skip=[{skipped}]}}"), abs=1e-6)
    assert found[-1].cumulative_db == math.inf


def test_a_spoiled_layer_comes_first() -> None:
    program = residual()
    with torch.no_grad():
        weights = dict(program.weights())
        weights["stem.weight"][0], weights["stem.bias"][0] = 0, 0
        weights["first.weight"][:, 0] *= 300  # reads a channel of zeros, and leaves the others no range
    found = scan(program, calibration=batches(program))
    assert found[0].node == "conv2d_1"
    assert found[0].sqnr_db == min(each.sqnr_db for each in found)


def test_quality_is_asked_without_each() -> None:
    program = residual()
    found = scan(program, calibration=batches(program), evaluate=lambda each: float(len(each.calls)))
    assert all(each.quality is not None and each.quality > 0 for each in found)
    picture = ElementTree.fromstring(draw(found))
    words = " ".join("".join(element.itertext()) for element in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert all(each.names[1] in words for each in found)
    with pytest.raises(PipelineError, match="is not the pass quantize"):
        scan(program, "winograd", calibration=batches(program))
