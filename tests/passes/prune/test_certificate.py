import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shave.passes.prune.certificate import certify
from shave.passes.prune.groups import find_groups
from shave.passes.prune.surgery import cut
from tests.passes.oracle import random_inputs
from tests.passes.prune.test_groups import traced
from tests.passes.strategies import programs

KEEP = {"stem": [0, 2, 3, 6]}


def pruned_residual():
    program = traced("residual")
    pruned = program.clone()
    cut(pruned, KEEP, by="test")
    return program, pruned


def with_weight(program, name, change):
    """Copy a program with one weight changed."""
    changed = program.clone()
    (node,) = [node for node in changed.graph.find_nodes(op="get_attr") if node.target == name]
    with changed.rewrite(by="test") as rewriter:
        tensor = change(changed.weight(node).detach().clone())
        rewriter.replace(node, rewriter.weight(name, tensor, sources=[node]))
    return changed


def inputs():
    return (torch.randn(2, 3, 8, 8),)


def test_a_right_cut_is_certified():
    certificate = certify(*pruned_residual(), KEEP, inputs())
    assert certificate.holds
    assert certificate.exact
    assert str(certificate).startswith(
        "cut of 1 groups equals the model with the weights that the removed channels feed"
    )


def nan(weight):
    weight[0] = torch.nan
    return weight


WRONG = {
    "twice": lambda weight: weight * 2,
    "sign": lambda weight: -weight,
    "permutation": lambda weight: weight.flip(0),
    "nan": nan,
    "a thousandth": lambda weight: weight * 1.001,
}


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("name", ["stem.weight", "norm.weight", "body.weight", "head.weight"])
def test_a_wrong_weight_is_refused(name, change):
    program, pruned = pruned_residual()
    certificate = certify(program, with_weight(pruned, name, WRONG[change]), KEEP, inputs())
    assert not certificate.holds
    assert "DIFFERS FROM" in str(certificate)


def test_a_cut_of_other_channels_is_refused():
    program = traced("residual")
    other = program.clone()
    cut(other, {"stem": [0, 2, 3, 5]}, by="test")
    assert not certify(program, other, KEEP, inputs()).holds


def test_channels_taken_from_the_wrong_place_of_one_weight_are_refused():
    program, pruned = pruned_residual()
    whole = dict(program.weights())["body.weight"].detach()
    wrong = with_weight(pruned, "body.weight", lambda _: whole[[0, 2, 3, 6]][:, [0, 2, 3, 7]])
    assert not certify(program, wrong, KEEP, inputs()).holds


def test_statistics_over_what_is_cut_are_named():
    program = traced("layer_norms")
    pruned, keep = program.clone(), {"into": [0, 1, 5]}
    cut(pruned, keep, by="test")
    certificate = certify(program, pruned, keep, (torch.randn(2, 9, 6),))
    assert certificate.holds
    assert len(certificate.restated) == 2
    assert "(2 statistics leave them out)" in str(certificate)


def test_an_output_of_another_shape_is_refused():
    program, pruned = pruned_residual()
    shorter = with_weight(with_weight(pruned, "head.weight", lambda w: w[:4]), "head.bias", lambda b: b[:4])
    assert not certify(program, shorter, KEEP, inputs()).holds


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.data())
def test_random_programs_are_cut_right(program, data):
    """Whatever the graph: what the groups say may go, goes, and nothing else changes."""
    keep = {}
    for group in find_groups(program):
        if not group.reason and data.draw(st.booleans()):
            keep[group.name] = sorted(data.draw(st.sets(st.sampled_from(range(group.units)), min_size=1)))
    pruned = program.clone()
    cut(pruned, keep, by="test")
    pruned.verify(full=True)
    certificate = certify(program, pruned, keep, random_inputs(program, 0))
    assert certificate.holds, str(certificate)
