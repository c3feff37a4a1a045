import pytest
import torch

import shave
from shave.ir.errors import VerifyError
from tests.modules import ConvNet

aten = torch.ops.aten


@pytest.fixture
def program():
    return shave.trace(ConvNet().eval(), (torch.randn(2, 3, 7, 5),), dynamic_shapes={"x": {0: "batch"}})


def node_of(program, name):
    return next(node for node in program.graph.nodes if node.name == name)


def test_a_sound_program_passes(program):
    program.verify()
    program.verify(full=True)


def test_reading_a_later_node(program):
    relu = node_of(program, "relu")
    relu.args = (program.outputs[0],)
    with pytest.raises(VerifyError, match="node relu reads linear before it is computed"):
        program.verify()


def test_a_weight_that_is_gone(program):
    del program.module.stem.weight
    with pytest.raises(VerifyError, match=r"stem_weight reads the weight stem.weight, which the module lacks"):
        program.verify()


def test_a_weight_of_another_shape(program):
    program.module.stem.weight = torch.nn.Parameter(torch.zeros(1, 3, 3, 3))
    with pytest.raises(VerifyError, match=r"claims float32\[8, 3, 3, 3\], but the weight is float32\[1, 3, 3, 3\]"):
        program.verify()


def test_a_node_without_value(program):
    del node_of(program, "relu").meta["val"]
    with pytest.raises(VerifyError, match="node relu has no value"):
        program.verify()


def test_a_call_of_no_operator(program):
    node_of(program, "relu").target = torch.nn.functional.relu
    with pytest.raises(VerifyError, match="which is no operator"):
        program.verify()


def test_outputs_that_left_the_signature(program):
    program.graph.output_node().args = ((program.outputs[0], program.outputs[0]),)
    with pytest.raises(VerifyError, match="the graph has 2 outputs, the signature 1"):
        program.verify()


def test_a_stale_value_is_found_by_the_full_check(program):
    relu = node_of(program, "relu")
    relu.args = (program.inputs[0],)
    program.verify()
    with pytest.raises(VerifyError, match="node relu claims") as error:
        program.verify(full=True)
    shown = str(error.value).splitlines()[1:]
    assert len(shown) <= 11
    assert [line for line in shown if line.startswith("> ")] == [line for line in shown if "%relu = " in line]


def test_a_wrong_dtype_is_found_by_the_full_check(program):
    relu = node_of(program, "relu")
    relu.meta["val"] = relu.meta["val"].to(torch.float64)
    with pytest.raises(VerifyError, match="claims float64"):
        program.verify(full=True)
