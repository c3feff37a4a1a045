import torch

from shave.passes.intermediate import compare_nodes, counterparts
from shave.passes.manager import PassManager
from tests.passes.examples import Idle, Quantize8, ReluToClamp, ReluToSilu, net_program

X = (torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(3)),)


def test_untouched_nodes_stand_for_themselves() -> None:
    before = net_program()
    found = compare_nodes(before, PassManager(Idle()).run(before), X)
    assert [row.node for row in found] == [row.reference for row in found] == [node.name for node in before.calls]
    assert all(row.difference.max_abs == 0 for row in found)


def test_new_nodes_stand_for_what_they_were_made_from() -> None:
    before = net_program()
    found = compare_nodes(before, PassManager(ReluToClamp()).run(before), X)
    assert [(row.reference, row.op) for row in found if row.node != row.reference] == [
        ("relu", "aten.clamp_min"),
        ("relu_1", "aten.clamp_min"),
    ]
    assert all(row.difference.max_abs == 0 for row in found)


def test_the_first_difference_is_where_it_arises() -> None:
    before = net_program()
    found = compare_nodes(before, PassManager(ReluToSilu()).run(before), X)
    broken = [row for row in found if row.difference.max_abs > 0]
    assert (broken[0].reference, broken[0].names) == ("relu", (broken[0].node, "first.relu"))
    want = torch.relu(before.module.first.conv.weight.new_tensor([-1.0]))  # type: ignore[operator, union-attr]
    assert want == 0
    assert [row.op for row in broken] == ["aten.silu", "aten.conv2d", "aten.silu", "aten.mean", "aten.linear"]


def test_of_a_row_of_new_nodes_the_last_one_counts() -> None:
    before = net_program()
    after = PassManager(Quantize8()).run(before)
    pairs = {name: node for node, name in counterparts(before, after).items()}
    assert "dequantize_per_tensor" in str(pairs["relu"].target)
    rows = {row.reference: row for row in compare_nodes(before, after, X)}
    assert 0 < rows["relu"].difference.max_abs <= 0.025 + 1e-6, "half a quantization step"
