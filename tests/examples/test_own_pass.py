from __future__ import annotations

import pytest
import torch
from torch import nn

import shave
from examples.own_pass import HardActivations, main
from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.pipeline import parse, to_text


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return shave.trace(nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3), nn.Sigmoid()), (torch.randn(4, 5),))


def run(program: Program, **options: tuple[str, ...]) -> Program:
    return shave.PassManager(HardActivations(**options), verify="full", reproduce=False).run(program)


def test_it_computes_what_torch_computes_with_hard_activations(program: Program) -> None:
    x = torch.randn(4, 5)
    weights = dict(program.weights())
    hidden = nn.functional.hardswish(nn.functional.linear(x, weights["0.weight"], weights["0.bias"]))
    want = nn.functional.hardsigmoid(nn.functional.linear(hidden, weights["2.weight"], weights["2.bias"]))
    torch.testing.assert_close(run(program)(x), want, rtol=1e-6, atol=1e-6)


def test_the_bounds_of_the_docstring_hold_and_are_tight() -> None:
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    sigmoid = (nn.functional.hardsigmoid(x) - x.sigmoid()).abs().max()
    silu = (nn.functional.hardswish(x) - nn.functional.silu(x)).abs().max()
    assert 0.069 < sigmoid <= 0.070
    assert 0.142 < silu <= 0.143


def test_it_reports_what_it_did_and_left(program: Program) -> None:
    (report,) = run(program, skip=("Sigmoid",)).report
    assert [(entry.verdict, entry.names[-1]) for entry in report.entries] == [("applied", "1"), ("skipped", "3")]
    assert 0 < report.drift["output"].max_rel < 0.1


def test_scopes_and_text() -> None:
    instance = HardActivations(layers=("features.0", "re:.*[13]"))
    assert parse(to_text([instance]), [HardActivations]) == (instance,)


def test_a_scope_that_matches_nothing_is_an_error(program: Program) -> None:
    with pytest.raises(PipelineError, match="the scope 'Silu' matches nothing in this program; did you mean"):
        run(program, layers=("Silu",))


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith('fold-batchnorm, dedupe, dead-code, hard-activations{skip=["7"]}')
    assert '- hard-activations{skip=["7"]}: 2 applied, 1 skipped, changed' in lines
    assert any("skipped sigmoid (aten.sigmoid): not in the scope given" in line for line in lines)
