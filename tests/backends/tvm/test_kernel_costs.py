"""The work behind kernels, counted by hand for a small network."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import shave
from shave.backends.targets import resolve
from shave.backends.tvm.kernel_costs import kernel_costs
from shave.backends.tvm.lower import lower
from shave.backends.tvm.schedules import Kernel


@dataclass(frozen=True)
class Call:
    """A call of a kernel."""

    name: str
    family: str
    nodes: tuple[str, ...]
    kernel: Kernel | None = None


class Net(nn.Module):
    """Convolution [1, 4, 6, 6] -> [1, 8, 6, 6], activation, a row of an embedding on top."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.table = nn.Embedding(100, 6)

    def forward(self, x, index):
        return torch.relu(self.conv(x)) + self.table(index)


@pytest.fixture(scope="module")
def program():
    return shave.trace(Net(), (torch.zeros(1, 4, 6, 6), torch.zeros(1, dtype=torch.int64)))


IMAGE, RESULT, WEIGHT, BIAS = 4 * 4 * 36, 4 * 8 * 36, 4 * 8 * 4 * 9, 4 * 8
MACS = 8 * 36 * 4 * 9


def test_a_region_reads_its_inputs_and_writes_its_result(program):
    (cost,) = kernel_costs(program, [Call("a", "conv", ("conv2d", "relu"))])
    assert (cost.name, cost.family, cost.calls, cost.nodes) == ("a", "conv", 1, ("conv2d", "relu"))
    assert cost.macs == MACS
    assert cost.bytes == IMAGE + WEIGHT + BIAS + RESULT


def test_a_table_is_not_read_whole(program):
    (cost,) = kernel_costs(program, [Call("a", "tail", ("embedding",))])
    assert cost.macs == 0
    assert cost.bytes == 8 + 2 * 4 * 6


def test_work_counts_once_and_for_the_kernel_of_a_family(program):
    calls = [Call("block", "tail", ("conv2d",)), Call("a", "conv", ("conv2d",)), Call("convert", "tail", ("conv2d",))]
    costs = {cost.name: cost for cost in kernel_costs(program, calls)}
    assert [(name, cost.macs, cost.bytes > 0) for name, cost in costs.items()] == [
        ("block", 0, False),
        ("a", MACS, True),
        ("convert", 0, False),
    ]


def test_calls_of_one_function_are_summed(program):
    (cost,) = kernel_costs(program, [Call("f", "tail", ("relu",)), Call("f", "tail", ("add",))])
    assert cost.calls == 2
    assert cost.nodes == ("relu", "add")
    assert cost.bytes == 2 * RESULT + (2 * RESULT + 4 * 6)


def test_a_lowered_program_counts_every_multiplication(program):
    lowered = lower(program, resolve("cpu"))
    assert lowered.plan is not None
    assert {step.kernel for step in lowered.plan.steps} == {cost.name for cost in lowered.costs}
    assert sum(cost.macs for cost in lowered.costs) == program.cost().macs == MACS


def test_sizes_known_at_run_time_give_no_costs():
    program = shave.trace(nn.ReLU(), (torch.zeros(2, 3),), dynamic_shapes={"input": {0: "N"}})
    assert lower(program, resolve("cpu")).costs == ()


def test_quantized_operands_are_read_as_integers(program):
    small = shave.PassManager("quantize").run(
        program, calibration=[(torch.randn(1, 4, 6, 6), torch.zeros(1, dtype=torch.int64))]
    )
    target = resolve("x86-64-v4-vnni")
    lowered = lower(small, target)
    (call,) = [call for call in lowered.kernels if call.family == "conv"]
    (cost,) = [cost for cost in kernel_costs(small, lowered.kernels) if cost.name == call.name]
    assert cost.integers
    assert cost.macs == MACS
    assert cost.bytes < IMAGE / 4 + WEIGHT / 4 + 2 * BIAS + 2 * RESULT + 100
