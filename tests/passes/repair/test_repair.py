from __future__ import annotations

import pytest
import torch

from shave.ir.program import Program
from shave.passes.prune.groups import find_groups
from shave.passes.prune.surgery import cut
from shave.passes.repair.repair import Mended, Method, consumers, kept_positions, repair
from tests.passes.prune.nets import NETS, data, perceptron, residual


def cut_and_mend(
    whole: Program, keep: dict[str, list[int]], method: Method, batches: int = 8
) -> tuple[Program, list[Mended]]:
    program = whole.clone()
    groups = find_groups(whole)
    cut(program, keep, "test")
    with program.rewrite(by="test") as rewriter:
        done = repair(
            whole,
            program,
            kept_positions(groups, keep),
            consumers(groups, keep),
            data(whole, batches, 16),
            method,
            rewriter=rewriter,
            generator=torch.Generator().manual_seed(0),
        )
    program.verify(full=True)
    return program, done


def test_what_can_be_told_from_the_rest_is_no_loss() -> None:
    """A unit that is a sum of two others can go without loss, once the weights behind have been fitted."""
    whole = perceptron()
    weights = dict(whole.weights())
    for name in ("first.weight", "first.bias"):
        weights[name].data[4] = weights[name].data[1] * 0.5
        weights[name].data[9] = weights[name].data[2] * 3
    keep = {"first": [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]}
    program, done = cut_and_mend(whole, keep, "reconstruct")
    inputs = data(whole, 1, seed=5)[0]
    torch.testing.assert_close(program(*inputs), whole(*inputs), rtol=1e-2, atol=1e-2)
    assert done[0].node.name == "linear_1"
    assert done[0].before is not None
    assert done[0].after is not None
    assert done[0].after < 1e-3 * done[0].before


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", ["statistics", "reconstruct"])
def test_every_net_can_be_mended(name: str, method: Method) -> None:
    whole = NETS[name]()
    keep = {
        group.name: list(range(0, group.units, 2))
        for group in find_groups(whole)
        if not group.reason and group.kind == "channels"
    }
    _, done = cut_and_mend(whole, keep, method)
    assert done
    for each in done:
        if each.after is not None and each.before is not None:
            assert each.after <= each.before


def test_biases_make_the_means_as_before() -> None:
    whole = perceptron()
    program, done = cut_and_mend(whole, {"first": [0, 2, 4, 6, 8, 10]}, "statistics")
    assert {each.text for each in done} == {"its bias is corrected"}
    inputs = [batch[0] for batch in data(whole, 8, 16)]
    want = torch.cat([whole(x) for x in inputs]).mean(0)  # type: ignore[misc]
    torch.testing.assert_close(torch.cat([program(x) for x in inputs]).mean(0), want, rtol=1e-4, atol=1e-5)  # type: ignore[misc]


def test_norms_get_the_statistics_of_what_they_read() -> None:
    whole = residual()
    program, done = cut_and_mend(whole, {"stem": [0, 2, 3, 7]}, "statistics")
    estimated = [each.node.name for each in done if "statistics" in each.text]
    norms = [node.name for node in program.calls if "batch_norm" in str(node.target)]
    assert estimated == norms[1:]  # not the first, which reads what it read before
    weights = dict(program.weights())
    assert torch.equal(weights["norm.running_mean"], dict(whole.weights())["norm.running_mean"][[0, 2, 3, 7]])
    x = torch.cat([batch[0] for batch in data(whole, 8, 16)])
    values = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            values[n.name] = value
            return value

    with torch.no_grad():
        Watch(program.module).run(x)
    for norm, source in (("norm1", "conv2d_1"), ("norm2", "conv2d_2")):
        read = values[source].double()
        torch.testing.assert_close(weights[f"{norm}.running_mean"].double(), read.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        variance = read.var((0, 2, 3), correction=0)
        torch.testing.assert_close(weights[f"{norm}.running_var"].double(), variance, rtol=1e-4, atol=1e-6)


def test_a_layer_makes_up_for_what_its_sum_lacks() -> None:
    """The stem's stream is cut; the layer that is added to it is fitted to the sum, not to its own output."""
    whole = residual()
    program, done = cut_and_mend(whole, {"conv1": [0, 1, 2]}, "reconstruct")
    assert "conv2d_2" in [each.node.name for each in done]
    assert not torch.equal(dict(program.weights())["conv2.weight"], dict(whole.weights())["conv2.weight"][:, :3])


def test_layers_ahead_of_a_cut_stay() -> None:
    whole = residual()
    program, done = cut_and_mend(whole, {"down": [0, 1, 2, 3]}, "reconstruct")
    before, after = dict(whole.weights()), dict(program.weights())
    for name in ("stem.weight", "conv1.weight", "conv2.weight", "norm1.running_mean"):
        assert torch.equal(before[name], after[name]), name
    assert torch.equal(after["down.weight"], before["down.weight"][:4])
    assert [each.node.name for each in done] == ["linear"]


def test_what_a_cut_leaves() -> None:
    whole = residual()
    found = kept_positions(find_groups(whole), {"stem": [1, 2], "conv1": [0, 5]})
    assert found["conv2d"][1].tolist() == [1, 2]
    assert found["conv2d_1"][1].tolist() == [0, 5]
    assert "conv2d_3" not in found
