import numpy as np
import onnxruntime
import pytest
import torch

import shave
from shave.ir.errors import PipelineError
from shave.passes.prune.certificate import certify
from shave.passes.prune.groups import find_groups
from shave.passes.prune.surgery import cut
from tests.passes.oracle import masked_equivalence
from tests.passes.prune.architectures import EVERY, residual
from tests.passes.prune.test_groups import traced

# What may be kept of each group in one trial: some, one, or all but one.
AMOUNTS = {"half": lambda units: units // 2, "one": lambda units: 1, "all but one": lambda units: units - 1}


def drawn(groups, amount, seed=0):
    generator = np.random.default_rng(seed)
    return {
        group.name: sorted(map(int, generator.choice(group.units, max(1, amount(group.units)), replace=False)))
        for group in groups
        if not group.reason
    }


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("name", EVERY)
def test_a_cut_equals_the_whole_without_the_channels(name, amount):
    program = traced(name)
    keep = drawn(find_groups(program), AMOUNTS[amount])
    pruned = program.clone()
    cut(pruned, keep, by="test")
    pruned.verify(full=True)
    certificate = certify(program, pruned, keep, (torch.randn(*EVERY[name][1]),))
    assert certificate.holds, str(certificate)
    assert pruned.cost().parameters < program.cost().parameters


@pytest.mark.parametrize("name", EVERY)
def test_groups_can_be_cut_one_by_one(name):
    """And each is gone from the next program's groups by as many units."""
    program = traced(name)
    for group in find_groups(program):
        if group.reason:
            continue
        pruned, keep = program.clone(), {group.name: list(range(group.units - 1))}
        cut(pruned, keep, by="test")
        assert certify(program, pruned, keep, (torch.randn(*EVERY[name][1]),)).holds
        if group.units > 2:
            assert {g.name: g.units for g in find_groups(pruned)}[group.name] == group.units - 1


def test_sizes_that_vary_go_through():
    make, _ = EVERY["grouped_queries"]
    example = torch.randn(2, 9, 6)
    program = shave.trace(make(), (example,), dynamic_shapes={"x": {0: "batch", 1: "length"}})
    pruned = program.clone()
    keep = drawn(find_groups(program), AMOUNTS["half"])
    cut(pruned, keep, by="test")
    pruned.verify(full=True)
    assert certify(program, pruned, keep, (example,)).holds
    assert pruned(torch.randn(3, 4, 6)).shape == (3, 4, 5)


def test_batch_and_channels_in_one_axis_are_scaled():
    """[batch * heads, length, dims]: heads are cut out of an axis whose size varies."""

    class Merged(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = torch.nn.Linear(6, 24), torch.nn.Linear(8, 5)

        def forward(self, x):
            n, length, _ = x.shape
            q, k, v = self.qkv(x).view(n, length, 3, 4, 2).permute(2, 0, 3, 1, 4).reshape(3, n * 4, length, 2)
            y = (q @ k.transpose(1, 2)).softmax(-1) @ v
            return self.out(y.view(n, 4, length, 2).transpose(1, 2).reshape(n, length, 8))

    program = shave.trace(Merged(), (torch.randn(2, 7, 6),), dynamic_shapes={"x": {0: "batch", 1: "length"}})
    pruned, keep = program.clone(), {"qkv:heads": [0, 2, 3]}
    cut(pruned, keep, by="test")
    pruned.verify(full=True)
    assert certify(program, pruned, keep, (torch.randn(2, 7, 6),)).holds
    assert pruned(torch.randn(3, 5, 6)).shape == (3, 5, 5)


def test_the_scale_of_attention_stays_what_it_was():
    program = traced("fused_attention")
    pruned = program.clone()
    cut(pruned, {"qkv:head dims": [0, 1, 3]}, by="test")
    (attention,) = [node for node in pruned.calls if "attention" in str(node.target)]
    assert attention.kwargs["scale"] == 4**-0.5


def test_the_given_oracle_agrees():
    """Zeroing the consumers by hand, in the whole program, gives what the cut gives."""
    program, removed = traced("residual"), [1, 4, 5]
    pruned = program.clone()
    cut(pruned, {"stem": [i for i in range(8) if i not in removed]}, by="test")
    zeroed = {"body.weight": (slice(None), removed), "head.weight": (slice(None), removed)}
    masked_equivalence(program, pruned, zeroed, (torch.randn(2, 3, 8, 8),))


def test_weights_keep_their_names_and_stay_trainable_and_the_original_is_whole():
    program = traced("residual")
    names = {name for name, _ in program.weights()}
    pruned = program.clone()
    cut(pruned, {"stem": [0, 3]}, by="test")
    assert {name for name, _ in pruned.weights()} == names
    weights = dict(pruned.weights())
    assert weights["stem.weight"].shape == (2, 3, 3, 3)
    assert isinstance(weights["stem.weight"], torch.nn.Parameter)
    assert not isinstance(weights["norm.running_mean"], torch.nn.Parameter)
    assert dict(program.weights())["stem.weight"].shape == (8, 3, 3, 3)
    pruned.module(torch.randn(2, 3, 8, 8))[0].sum().backward()
    assert weights["stem.weight"].grad is not None


@pytest.mark.parametrize("name", ["residual", "grouped", "windows", "shuffled", "padded_channels"])
def test_onnx_runtime_gives_the_same(name, tmp_path):
    pruned = traced(name).clone()
    cut(pruned, drawn(find_groups(pruned), AMOUNTS["half"]), by="test")
    pruned.to_onnx(tmp_path / "cut.onnx")
    x = torch.randn(*EVERY[name][1])
    session = onnxruntime.InferenceSession(tmp_path / "cut.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, pruned(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_model_from_onnx_is_cut_like_its_origin(tmp_path):
    traced("residual").to_onnx(tmp_path / "whole.onnx")
    program = shave.read(tmp_path / "whole.onnx")
    groups = find_groups(program)
    keep = drawn(groups, AMOUNTS["half"])
    pruned = program.clone()
    cut(pruned, keep, by="test")
    assert certify(program, pruned, keep, (torch.randn(2, 3, 8, 8),)).holds
    assert [group.units for group in groups if not group.reason] == [8]


def test_weights_that_are_not_numbers_are_cut_like_others():
    torch.manual_seed(0)
    module = residual()
    with torch.no_grad():
        module.stem.weight[2] = torch.nan
    program = shave.trace(module, (torch.randn(2, 3, 8, 8),))
    keep = {"stem": [0, 1, 3, 4, 5, 6, 7]}
    pruned = program.clone()
    cut(pruned, keep, by="test")
    assert pruned(torch.randn(2, 3, 8, 8)).isfinite().all()
    assert certify(program, pruned, keep, (torch.randn(2, 3, 8, 8),)).holds


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"stm": [0]}, "there is no group 'stm' in this program; did you mean 'stem'"),
        ({"head": [0]}, "group 'head' may not be cut: the program gives it as an output"),
        ({"stem": []}, "all of its 8 channels would go; keep at least one"),
        ({"stem": [0, 8]}, "what to keep must be ascending numbers from 0 to 7"),
        ({"stem": [-1, 2]}, "what to keep must be ascending numbers from 0 to 7"),
        ({"stem": [2, 2]}, "what to keep must be ascending numbers from 0 to 7"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_changes(keep, message):
    program = traced("residual").clone()
    before = program.structural_hash()
    with pytest.raises(PipelineError, match=message.replace("?", r"\?")):
        cut(program, keep, by="test")
    assert program.structural_hash() == before
