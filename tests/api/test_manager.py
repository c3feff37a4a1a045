import torch

import shave
from shave.backends.targets import resolve
from shave.passes.base import Context
from shave.passes.instruments import Instrument


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


def test_without_a_target_there_is_none():
    assert context_of().oracle is None
