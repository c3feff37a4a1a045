import pytest
import torch
from torch import nn

import shave
from shave.ir.errors import ReadError, SignatureError
from shave.ir.ops import op_name
from tests.modules import Attention, ConvNet, Named, Tied


def test_program_computes_what_the_module_computes():
    module = ConvNet().eval()
    x = torch.randn(2, 3, 7, 5)
    program = shave.trace(module, (x,))
    torch.testing.assert_close(program(x), module(x), rtol=0, atol=0)
    program.verify(full=True)


def test_an_exported_program_becomes_a_program():
    module = ConvNet().eval()
    x = torch.randn(2, 3, 7, 5)
    program = shave.from_exported(torch.export.export(module, (x,)), input_names=["image"], output_names=["scores"])
    assert str(program.signature) == "(image: float32[2, 3, 7, 5]) -> (scores: float32[2, 5])"
    torch.testing.assert_close(program(image=x), module(x), rtol=0, atol=0)


def test_composites_stay_whole_and_dropout_goes():
    program = shave.trace(ConvNet(), (torch.randn(1, 3, 7, 5),))
    names = [op_name(node) for node in program.calls]
    assert names.count("aten.conv2d") == 2
    assert "aten.batch_norm" in names
    assert "aten.linear" in names
    assert "aten.relu" in names
    assert not any("dropout" in name for name in names)


def test_training_flag_is_restored():
    module = ConvNet()
    module.norm.eval()
    shave.trace(module, (torch.randn(1, 3, 7, 5),))
    assert module.training
    assert not module.norm.training


def test_dynamic_dimensions_keep_their_names():
    module = Attention().eval()
    program = shave.trace(module, (torch.randn(2, 6, 16),), dynamic_shapes={"x": {0: "batch", 1: "length"}})
    assert str(program.signature) == "(x: float32[batch, length, 16]) -> (output: float32[batch, length, 16])"
    for shape in ((1, 3, 16), (5, 9, 16)):
        x = torch.randn(*shape)
        torch.testing.assert_close(program(x), module(x))
    with pytest.raises(SignatureError, match="'x', dimension 2 is 15"):
        program(torch.randn(1, 3, 15))


class Positions(nn.Module):
    """Takes at most twelve steps."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(12, 4))

    def forward(self, x):
        return x + self.table[: x.shape[1]]


def test_ranges_that_the_module_sets_are_taken_over():
    module = Positions()
    program = shave.trace(module, (torch.randn(2, 5, 4),), dynamic_shapes={"x": {0: "batch", 1: "length"}})
    assert program.signature.dims["length"][1] == 12
    x = torch.randn(3, 12, 4)
    torch.testing.assert_close(program(x), module(x))
    with pytest.raises(SignatureError, match=r"'x', dimension 1 \(length\) is 13"):
        program(torch.randn(3, 13, 4))


def test_a_dimension_that_must_be_constant_is_an_error():
    with pytest.raises(ReadError, match=r"(?s)cannot trace Linear.*features"):
        shave.trace(nn.Linear(4, 2), (torch.randn(3, 4),), dynamic_shapes={"input": {1: "features"}})


def test_equal_names_are_equal_sizes():
    program = shave.trace(
        Named(), (torch.randn(3, 2), torch.randn(3, 2)), dynamic_shapes={"left": {0: "n"}, "right": {0: "n"}}
    )
    assert [spec.name for spec in program.signature.outputs] == ["sum", "parts.0", "parts.1"]
    with pytest.raises(SignatureError, match=r"'right', dimension 0 \(n\) is 5, but n is 4 elsewhere"):
        program(torch.randn(4, 2), torch.randn(5, 2))


def test_named_arguments_and_several_outputs():
    program = shave.trace(Named(), (torch.randn(3), torch.randn(3)))
    left, right = torch.randn(3), torch.randn(3)
    total, doubled, same = program(right=right, left=left)
    torch.testing.assert_close(total, left + right)
    torch.testing.assert_close(doubled, left * 2)
    torch.testing.assert_close(same, right)


def test_a_shared_weight_is_one_node():
    module = Tied().eval()
    program = shave.trace(module, (torch.randn(2, 4),))
    weights = list(program.weights())
    assert len(weights) == 1
    assert weights[0][1] is module.first.weight
    assert program.cost().parameters == 16


def test_unused_inputs_stay():
    class Ignores(nn.Module):
        def forward(self, x, unused):
            return x + 1

    program = shave.trace(Ignores(), (torch.zeros(2), torch.zeros(3)))
    assert [spec.name for spec in program.signature.inputs] == ["x", "unused"]


def test_an_output_may_be_an_input_or_a_weight():
    class Passes(nn.Module):
        def __init__(self):
            super().__init__()
            self.constant = nn.Parameter(torch.arange(3.0))

        def forward(self, x):
            return x, self.constant, x * 1

    program = shave.trace(Passes(), (torch.ones(2),))
    x = torch.randn(2)
    outputs = program(x)
    torch.testing.assert_close(outputs[0], x)
    torch.testing.assert_close(outputs[1], torch.arange(3.0))


def test_state_that_changes_is_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return x + self.count

    with pytest.raises(ReadError, match=r"changes its own state \(buffer mutation of count\)"):
        shave.trace(Counter(), (torch.zeros(1),))


def test_a_module_that_does_not_export_is_named():
    class Branches(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ReadError, match=r"torch\.export cannot trace Branches"):
        shave.trace(Branches(), (torch.zeros(1),))


def test_an_unknown_dynamic_input_is_named():
    with pytest.raises(ReadError, match="dynamic_shapes names lift, but the inputs are left, right"):
        shave.trace(Named(), (torch.zeros(1), torch.zeros(1)), dynamic_shapes={"lift": {0: "n"}})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(torch.zeros(1, 3, 7, 5, dtype=torch.float64)), "'x' has dtype float64"),
        (lambda p: p(torch.zeros(1, 3, 7, 6)), "'x', dimension 3 is 6"),
        (lambda p: p(), "missing input 'x'"),
        (lambda p: p([1.0]), "'x' is a list, not a torch.Tensor"),
    ],
)
def test_wrong_inputs(call, message):
    program = shave.trace(ConvNet(), (torch.randn(1, 3, 7, 5),))
    with pytest.raises(SignatureError, match=message):
        call(program)


def test_the_program_trains():
    program = shave.trace(ConvNet(), (torch.randn(4, 3, 7, 5),)).clone(copy_weights=True)
    parameters = [p for p in program.module.parameters() if p.requires_grad]
    assert parameters
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    x, labels = torch.randn(4, 3, 7, 5), torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(program.module(x)[0], labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
