import pytest
import torch

import shave
from shave.ir.errors import UnsupportedError
from shave.ir.ops import OPS, Trait, argument, has_trait, op_name, row
from tests.modules import ConvNet


@pytest.fixture
def program():
    return shave.trace(ConvNet(), (torch.randn(2, 3, 7, 5),))


def call(program, name):
    return next(node for node in program.calls if op_name(node) == name)


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_row_names_an_operator_of_torch(name):
    import torch.ao.quantization.fx._decomposed

    namespace, operator = name.split(".")
    assert hasattr(getattr(torch.ops, namespace), operator)


def test_traits(program):
    assert has_trait(call(program, "aten.relu"), Trait.ELEMENTWISE)
    assert not has_trait(call(program, "aten.conv2d"), Trait.ELEMENTWISE)
    assert not has_trait(program.inputs[0], Trait.ELEMENTWISE)


def test_an_operator_without_a_row_is_refused_by_name(program):
    node = call(program, "aten.relu")
    node.target = torch.ops.aten.linalg_svd.default
    with pytest.raises(UnsupportedError, match=r"operator aten.linalg_svd \(node relu\) has no row"):
        row(node)
    assert not has_trait(node, Trait.ELEMENTWISE)


def test_arguments_by_name(program):
    conv = call(program, "aten.conv2d")
    assert argument(conv, "padding") == [1, 1]
    assert argument(conv, "groups") == 1
    with pytest.raises(KeyError, match="has no argument 'group'"):
        argument(conv, "group")
