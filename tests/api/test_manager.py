from dataclasses import replace

import pytest
import torch

import shave
from shave.backends.targets import resolve
from shave.backends.tvm.tune.database import append
from shave.backends.tvm.tune.records import Comparison, machine_of, problem_key
from shave.ir.errors import ReadError
from shave.passes.base import Context
from shave.passes.instruments import Instrument
from shave.passes.problems import Conv2d, Measured


class Watch(Instrument):
    """Keeps the context of a run."""

    def before_pipeline(self, program, passes, context: Context) -> None:
        self.context = context


def context_of(**given):
    watch = Watch()
    program = shave.trace(torch.nn.ReLU(), (torch.zeros(2),))
    shave.PassManager("dead-code", instruments=[watch]).run(program, **given)
    return watch.context


def test_targets_by_name_bring_their_oracle():
    context = context_of(target="x86-64-v3")
    assert context.target == resolve("x86-64-v3")
    assert callable(context.oracle)
    assert context_of(target=resolve("x86-64-v3")).target == context.target


def test_an_oracle_of_the_callers_own_goes_first():
    def oracle(problem):
        return 1.0

    assert context_of(target="cpu", oracle=oracle).oracle is oracle
    assert context_of(oracle=oracle).target is None


def test_a_database_answers_ahead_of_estimates(tmp_path):
    target = replace(resolve("x86-64-v4"), cores=1)
    problem = Conv2d(1, 64, 64, 14, 14, (3, 3), padding=(1, 1))
    path = tmp_path / "tuned.jsonl"
    append(path, Comparison(problem_key(problem), machine_of(target), 1, {"direct": 3.0, "winograd 4": 1.0}))
    oracle = context_of(target=target, tuned=path).oracle
    assert (oracle(problem), type(oracle(problem))) == (3.0, Measured)
    assert 0 < oracle(replace(problem, width=15)) < 1e-2


def test_databases_need_a_target_and_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="give target="):
        context_of(tuned=tmp_path / "tuned.jsonl")
    with pytest.raises(ReadError, match=r"absent\.jsonl: No such file"):
        context_of(target="cpu", tuned=tmp_path / "absent.jsonl")


def test_without_a_target_there_is_none():
    assert context_of().oracle is None
