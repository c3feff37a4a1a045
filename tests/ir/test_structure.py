import torch

import shave
from shave.ir.structure import weight_digest
from tests.modules import ConvNet

aten = torch.ops.aten


def test_names_do_not_count():
    class Renamed(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    module = ConvNet()
    x = (torch.randn(2, 3, 7, 5),)
    assert shave.trace(module, x).structural_hash() == shave.trace(Renamed(module), x).structural_hash()


def test_every_kind_of_change_counts():
    x = torch.randn(2, 3, 7, 5)
    program = shave.trace(ConvNet(), (x,))
    hashes = {program.structural_hash()}

    other_weight = program.clone(copy_weights=True)
    with torch.no_grad():
        dict(other_weight.weights())["head.bias"][0] += 1
    hashes.add(other_weight.structural_hash())

    other_argument = program.clone()
    mean = next(node for node in other_argument.calls if node.target is aten.mean.dim)
    mean.args = (mean.args[0], [3, 2])
    hashes.add(other_argument.structural_hash())

    other_operator = program.clone()
    next(node for node in other_operator.calls if node.target is aten.relu.default).target = aten.silu.default
    hashes.add(other_operator.structural_hash())

    other_names = shave.trace(ConvNet(), (x,), dynamic_shapes={"x": {0: "batch"}})
    hashes.add(other_names.structural_hash())
    assert len(hashes) == 5


def test_writing_in_place_changes_the_digest():
    tensor = torch.zeros(4)
    first = weight_digest(tensor)
    tensor[0] = 1
    assert weight_digest(tensor) != first
    tensor[0] = 0
    assert weight_digest(tensor) == first


def test_digest_tells_dtype_and_shape_apart():
    tensors = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(()), torch.zeros(0)]
    tensors.append(torch.zeros(8, dtype=torch.bfloat16))
    assert len({weight_digest(tensor) for tensor in tensors}) == len(tensors)


def test_the_order_of_weights_does_not_count_but_sharing_does():
    class Twice(torch.nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(3))
            self.b = self.a if shared else torch.nn.Parameter(torch.ones(3))
            self.c = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return (x + self.c) * self.a - self.b

    program = shave.trace(Twice(False), (torch.randn(3),))
    moved = program.clone()
    weights = moved.graph.find_nodes(op="get_attr")
    weights[0].prepend(weights[2])
    moved.verify()
    assert [node.target for node in moved.graph.find_nodes(op="get_attr")] == ["c", "a", "b"]
    assert moved.structural_hash() == program.structural_hash()
    assert shave.trace(Twice(True), (torch.randn(3),)).structural_hash() != program.structural_hash()
