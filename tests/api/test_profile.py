"""``shave bench --profile``."""

import pytest
import torch

import shave
from shave.backends.kernel_cost import KernelCost
from shave.backends.runtime import KernelTime
from shave.backends.tvm.roofline import Roofline
from shave.cli.profile import entries
from tests.api.conftest import call
from tests.modules import ConvNet

ROOFLINE = Roofline(
    threads=1, integer_macs_per_second=4e9, macs_per_second=1e9, bandwidths=((1000, 1e9), (1 << 20, 1e8))
)


def test_the_most_lost_time_comes_first():
    times = [KernelTime("busy", 1, 0.010), KernelTime("slow", 2, 0.005), KernelTime("other", 1, 0.001)]
    costs = {
        "busy": KernelCost("busy", "conv", 1, ("a",), 9_000_000, 100),  # 9 ms of arithmetic
        "slow": KernelCost("slow", "tail", 2, ("b", "c"), 0, 2000),  # twice 1000 bytes from the fast level
    }
    listed = entries(times, costs, ROOFLINE)
    assert [entry.name for entry in listed] == ["slow", "busy", "other"]
    assert listed[0].limit == pytest.approx(2e-6)
    assert listed[0].lost == pytest.approx(0.005 - 2e-6)
    assert listed[1].limit == pytest.approx(0.009)
    assert listed[1].lost == pytest.approx(0.001)
    assert (listed[2].limit, listed[2].family, listed[2].lost) == (None, None, 0.001)


def test_time_below_the_limit_is_not_lost():
    (entry,) = entries([KernelTime("a", 1, 0.001)], {"a": KernelCost("a", "conv", 1, (), 2_000_000, 0)}, ROOFLINE)
    assert entry.lost == 0


def test_a_profile_has_every_kernel_with_its_limit(inside):
    program = shave.trace(ConvNet(), (torch.zeros(1, 3, 96, 64),))
    shave.compile(program, passes="simplify").save("fixed.shave")  # Winograd's method has fewer multiplications
    data = call("bench fixed.shave --profile --threads 1 --rounds 2 --json").data
    kernels = data["kernels"]
    assert data["roofline"]["threads"] == 1
    assert sum(kernel["macs"] for kernel in kernels) == program.cost().macs
    assert all(kernel["calls"] >= 1 for kernel in kernels)
    # The head's 40 multiply-adds take less than what a call costs by itself, which is subtracted.
    assert all(kernel["seconds"] > 0 for kernel in kernels if kernel["limit"] and kernel["macs"] != 40)
    assert data["limit"] == pytest.approx(sum(kernel["limit"] for kernel in kernels))
    lost = [kernel["lost"] for kernel in kernels]
    assert lost == sorted(lost, reverse=True)
    text = call("bench fixed.shave --profile --threads 1 --rounds 2").out
    assert "conv2d" in text
    assert "multiply-adds/s" in text


def test_a_profile_of_sizes_known_at_run_time_has_no_limits(inside):
    outcome = call("bench net.shave --profile --threads 1 --rounds 2")
    assert outcome.code == 0
    assert "no limits" in outcome.out
    assert "conv" in outcome.out


@pytest.mark.parametrize("line", ["bench net.shave --profile --against net.onnx", "bench net.pt2 --profile"])
def test_a_profile_is_of_one_artifact(inside, line):
    outcome = call(line)
    assert outcome.code == 2
    assert "--profile" in outcome.err
