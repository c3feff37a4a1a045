from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import shave
from shave.ir.errors import PipelineError
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.codebook.codebook import Codebook
from shave.passes.codebook.weights import is_candidate
from shave.passes.manager import PassManager
from shave.passes.pipeline import parse
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten
X = torch.zeros(2, 6)


class Net(nn.Module):
    """Layers of every kind that has a weight, of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 13, 3, padding=1, bias=False)
        self.depth = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.up = nn.ConvTranspose2d(13, 9, 3)
        self.head = nn.Linear(9, 41)
        self.factor = nn.Parameter(torch.randn(41, 17))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.up(torch.relu(self.depth(torch.relu(self.stem(x))))))
        return torch.relu(self.head(x.mean((2, 3)))) @ self.factor


@cache
def _net() -> Program:
    torch.manual_seed(0)
    return shave.trace(Net().eval(), (torch.randn(2, 3, 9, 7),), dynamic_shapes={"x": {0: "batch"}})


def net() -> Program:
    return _net().clone()


def words() -> Program:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Embedding(50, 12), nn.Linear(12, 50))
    return shave.trace(module.eval(), (torch.zeros(2, 5, dtype=torch.int64),))


def images(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 9, 7, generator=generator) for _ in range(count)]


class _Contract(PassContract):
    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"net": net, "words": words}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return filter(is_candidate, program.calls)


class TestContract(_Contract):
    golden = ("net", "words")
    onnx = ("net",)

    def make_pass(self) -> Pass:
        return Codebook(bits=3)


class TestContractOnData(_Contract):
    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"net": net}

    def make_pass(self) -> Pass:
        return Codebook(scheme="ternary", tables="channel")

    def run_arguments(self, program: Program) -> dict[str, Any]:
        return {"calibration": images()}


def distances(program: Program, other: Program, inputs: Iterable[torch.Tensor]) -> float:
    """Squared error of the outputs, as a share of their variance."""
    pairs = [(program(x), other(x)) for x in inputs]
    return float(np.mean([float(((a - b) ** 2).mean() / a.var()) for a, b in pairs]))  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("scheme", ["kmeans", "quantile"])
def test_more_bits_err_less_and_take_their_bytes(scheme: str) -> None:
    program, seen = net(), []
    for bits in (1, 2, 4, 6):
        result, _ = run_pass(f"codebook{{scheme={scheme} bits={bits} layers=[stem, up] tables=tensor}}", program)
        small = [node for node in result.calls if op_name(node) == "shave.lookup"]
        sizes = [math.prod(node.meta["val"].shape) for node in small]
        assert sizes == [3 * 13 * 9, 13 * 9 * 9]
        saved = program.cost().weight_bytes - result.cost().weight_bytes
        assert saved == sum(4 * size - math.ceil(size * bits / 8) - 4 * 2**bits for size in sizes)
        seen.append(distances(program, result, images(1)))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 1e-3


def test_every_start_gives_its_own_table_and_equal_seeds_equal_ones() -> None:
    texts = {
        init: str(PassManager(f"codebook{{init={init}}}").run(net()).structural_hash())
        for init in ("density", "forgy", "linear")
    }
    assert len(set(texts.values())) == 3
    again = PassManager("codebook{init=forgy}").run(net(), seed=0).structural_hash()
    other = PassManager("codebook{init=forgy}").run(net(), seed=1).structural_hash()
    assert again == texts["forgy"] != other


def test_data_halve_the_error_of_the_outputs() -> None:
    program = net()
    data = images(24)
    by_weights, _ = run_pass("codebook{bits=2 data=false}", program, calibration=data)
    by_data, report = run_pass("codebook{bits=2}", program, calibration=data)
    held_out = [torch.randn(64, 3, 9, 7, generator=torch.Generator().manual_seed(5))]
    assert distances(program, by_data, held_out) < 0.5 * distances(program, by_weights, held_out)
    assert any("of the output by data" in entry.text for entry in report.applied)


def test_the_mean_of_the_outputs_stays_where_the_data_are() -> None:
    program = program_of(
        lambda x, w: aten.linear.default(x, w), {"x": torch.zeros(4, 30)}, draw({"head.weight": (40, 30)})
    )
    data = [torch.rand(4, 30, generator=torch.Generator().manual_seed(k)) + 2 for k in range(30)]
    result, _ = run_pass("codebook{bits=1}", program, calibration=data)
    means = [torch.cat([p(x) for x in data]).mean(0) for p in (program, result)]  # type: ignore[arg-type]
    torch.testing.assert_close(means[0], means[1], rtol=1e-3, atol=1e-3)


def test_tables_of_channels_are_taken_where_they_pay() -> None:
    rows = 2.0 ** torch.arange(8).reshape(8, 1)
    weights = {"far.weight": draw({"w": (8, 3000)})["w"] * rows, "near.weight": draw({"w": (8, 3000)})["w"]}

    def layers(x: Any, far: Any, near: Any) -> Any:
        return aten.add.Tensor(aten.linear.default(x, far), aten.linear.default(x, near))

    program = program_of(layers, {"x": torch.zeros(2, 3000)}, weights)
    result, report = run_pass("codebook{bits=3}", program)
    texts = [entry.text for entry in report.applied]
    assert "8 values per channel" in texts[0]
    assert "8 values:" in texts[1]
    shapes = {name: tuple(w.shape) for name, w in result.weights() if name.endswith("codebook")}
    assert shapes == {"far.weight_codebook": (8, 8), "near.weight_codebook": (8,)}


def test_bits_by_scope() -> None:
    _, report = run_pass("codebook{bits=2 layer-bits={stem=6 head=8 re:he.*=5}}", net())
    for layer, bits in {"stem": 6, "head": 5, "up": 2}.items():
        (text,) = (entry.text for entry in report.applied if layer in entry.labels)
        assert text.startswith(f"{bits} bits")


def test_gradients_bring_the_outputs_closer() -> None:
    program, data = net(), images(4)
    before, _ = run_pass("codebook{bits=1 data=false}", program, calibration=data)
    after, report = run_pass("codebook{bits=1 data=false finetune=outputs steps=60}", program, calibration=data)
    assert report.metrics["output_error"] < 0.95 * report.metrics["output_error_before_finetune"]
    assert distances(program, after, data) < distances(program, before, data)
    changed = [name for name, w in after.weights() if not torch.equal(w, dict(before.weights())[name])]
    assert changed
    assert all(name.endswith("_codebook") for name in changed)


def test_a_trainer_moves_the_tables_and_nothing_else() -> None:
    def trainer(program: Program) -> None:
        for _, weight in program.weights():
            if weight.requires_grad:
                with torch.no_grad():
                    weight.add_(1)

    program = net()
    before, _ = run_pass("codebook", program)
    after, _ = run_pass("codebook{finetune=trainer}", program, trainer=trainer)
    for name, weight in after.weights():
        old = dict(before.weights())[name]
        wanted = old + 1 if name.endswith("_codebook") else old
        assert torch.equal(weight.detach(), wanted.detach())
        assert weight.requires_grad == old.requires_grad
    with pytest.raises(PipelineError, match="codebook needs trainer"):
        PassManager("codebook{finetune=trainer}", reproduce=False).run(program)


def test_a_shared_weight_becomes_one_lookup() -> None:
    weights = draw({"shared": (40, 40)})

    def twice(x: Any, w: Any) -> Any:
        return aten.linear.default(aten.relu.default(aten.linear.default(x, w)), w)

    program = program_of(twice, {"x": torch.zeros(2, 40)}, weights)
    result, report = run_pass("codebook", program)
    assert [op_name(node) for node in result.calls].count("shave.lookup") == 1
    assert len(report.applied) == 2
    _, report = run_pass("codebook{skip=[linear_default_1]}", program)
    assert reasons(report) == {
        "linear_default": "skipped: its weight is shared with linear_default_1, which stays as it is"
    }


def layer(weight: torch.Tensor) -> Program:
    return program_of(lambda x, w: aten.linear.default(x, w), {"x": torch.zeros(2, weight.shape[1])}, {"w": weight})


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.full((20, 20), float("nan")), "its weight is not finite"),
        (torch.tensor([[1.0, float("inf")]]), "its weight is not finite"),
        (torch.arange(6.0).reshape(2, 3), "its 6 values would take 27 bytes instead of 24"),
    ],
)
def test_weights_that_cannot_be_or_gain_nothing(weight: torch.Tensor, reason: str) -> None:
    _, report = run_pass("codebook", layer(weight))
    assert not report.changed
    assert reasons(report) == {"linear_default": f"skipped: {reason}"}


@pytest.mark.parametrize("scheme", ["kmeans", "quantile", "binary", "ternary"])
@pytest.mark.parametrize("value", [0.0, -1.5])
def test_constant_weights_stay_what_they_are(scheme: str, value: float) -> None:
    program = layer(torch.full((16, 16), value))
    data = [torch.randn(2, 16) for _ in range(3)]
    result, report = run_pass(f"codebook{{scheme={scheme}}}", program, calibration=data)
    assert report.changed
    torch.testing.assert_close(result(data[0]), program(data[0]))


def test_weights_in_small_forms_and_computed_ones_stay() -> None:
    once, _ = run_pass("codebook{layers=[stem]}", net())
    _, report = run_pass("codebook{layers=[stem]}", once)
    assert [entry.text for entry in report.skipped] == ["its weight is stored in a small form already (shave.lookup)"]
    weights = draw({"w": (20, 20)})
    program = program_of(lambda x, w: aten.mm.default(x, aten.t.default(w)), {"x": torch.zeros(2, 20)}, weights)
    assert "run fold-constants first" in reasons(run_pass("codebook", program)[1])["mm_default"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("codebook{bits=0}", "bits is 0, but lies between 1 and 8"),
        ("codebook{bits=9}", "bits is 9, but lies between 1 and 8"),
        ("codebook{layer-bits={head=12}}", "head is 12, but lies between 1 and 8"),
        ("codebook{scheme=binary bits=2}", "binary decides on the bits itself"),
        ("codebook{steps=0}", "steps is 0, but is 1 at least"),
        ("codebook{scheme=octal}", "scheme"),
    ],
)
def test_options_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse(text)


def test_a_scope_that_matches_nothing() -> None:
    with pytest.raises(PipelineError, match=r"the scope 'haed' matches nothing.*head"):
        PassManager("codebook{layer-bits={haed=8}}", reproduce=False).run(net())
    with pytest.raises(PipelineError, match="'nowhere' matches nothing"):
        PassManager("codebook{layers=[nowhere]}", reproduce=False).run(net())
