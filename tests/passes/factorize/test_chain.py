from __future__ import annotations

from shave.passes.factorize.chain import Convolve, Costs, Multiply, Reorder, costs, whole
from shave.passes.factorize.layer import Window
from shave.passes.problems import Conv2d, Matmul, Measured, Problem, Transpose, WinogradConv2d
from tests.passes.factorize.layers import convolution, linear, only_layer, random


def test_a_layer_costs_what_its_program_does() -> None:
    for program in (
        convolution(random(8, 6, 3, 2), stride=(2, 1), padding=(1, 2), batch=1),
        convolution(random(8, 6, 3, 3), dilation=(1, 2), batch=3),
        linear(random(20, 30), lead=(3, 5)),
    ):
        found, cost = costs([whole(only_layer(program))], None), program.cost()
        assert (found.macs, found.time) == (cost.macs, None)
        assert found.params == cost.parameters - only_layer(program).channels[0]


def test_each_step_takes_its_fastest_method() -> None:
    def oracle(problem: Problem) -> float | None:
        if isinstance(problem, WinogradConv2d):
            return {2: None, 4: 2.0, 6: 3.0}[problem.tile]
        return {Conv2d: 5.0, Matmul: 7.0, Transpose: 11.0}[type(problem)]

    three = Convolve(1, 8, 8, (9, 9), Window((3, 3)))
    assert costs([three], oracle).time == 2.0
    assert costs([Convolve(1, 8, 8, (9, 9), Window((3, 3), (2, 1)))], oracle).time == 5.0
    assert costs([Convolve(1, 8, 8, (9, 9), Window((3, 3)), groups=8)], oracle).time == 5.0
    steps = [Reorder(6, (6,), (), (6,)), Multiply(1, 6, 4), Reorder(4, (2, 2), (1, 0), (4,)), three]
    assert costs(steps, oracle) == Costs(24 + 8 * 8 * 9 * 49, 24 + 8 * 8 * 9, 7.0 + 11.0 + 2.0)


def test_measurements_are_not_set_against_estimates() -> None:
    three = Convolve(1, 8, 8, (9, 9), Window((3, 3), (2, 1)))
    assert costs([three, Multiply(1, 6, 4)], lambda p: Measured(9.0, 5.0) if isinstance(p, Conv2d) else 7.0).time == 12
    assert costs([three], lambda problem: Measured(9.0)).time is None


def test_a_step_that_the_oracle_does_not_know_leaves_the_time_open() -> None:
    steps = [Multiply(1, 6, 4), Reorder(4, (2, 2), (1, 0), (4,))]
    assert costs(steps, lambda problem: 1.0 if isinstance(problem, Matmul) else None).time is None
