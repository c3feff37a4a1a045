import pytest
import torch

import shave
from shave.ir.rewrite import PROVENANCE
from tests.modules import ConvNet, Tied

aten = torch.ops.aten


def node_of(program, name):
    return next(node for node in program.graph.nodes if node.name == name)


@pytest.fixture
def program():
    return shave.trace(ConvNet().eval(), (torch.randn(2, 3, 7, 5),), dynamic_shapes={"x": {0: "batch"}})


def test_replace_records_where_a_node_comes_from(program):
    relu = node_of(program, "relu")
    with program.rewrite(by="test") as rewriter:
        silu = rewriter.call(aten.silu.default, relu.args, before=relu, sources=[relu])
        rewriter.replace(relu, silu)
    program.verify(full=True)
    assert silu.meta["custom"][PROVENANCE] == {"by": "test", "from": ["relu"]}
    assert silu.meta["val"].shape[1:] == (8, 7, 5)
    assert "relu" not in {node.name for node in program.graph.nodes}


def test_replacing_an_output(program):
    head = program.outputs[0]
    with program.rewrite(by="test") as rewriter:
        double = rewriter.call(aten.mul.Tensor, (head, 2.0), before=program.graph.output_node(), sources=[head])
        rewriter.replace(head, double)
    assert program.outputs == (double,)
    assert double.args[0] is head
    program.verify(full=True)


def test_a_call_that_does_not_fit_leaves_the_graph_alone(program):
    before = program.structural_hash()
    relu = node_of(program, "relu")
    with pytest.raises(RuntimeError), program.rewrite(by="test") as rewriter:
        rewriter.call(aten.linear.default, (relu, relu), before=relu, sources=[relu])
    assert program.structural_hash() == before
    program.verify(full=True)


def test_writing_a_shared_weight_clones_it():
    module = Tied().eval()
    x = torch.randn(2, 4)
    program = shave.trace(module, (x,))
    first, second = [node for node in program.calls if node.target is aten.linear.default]
    with program.rewrite(by="test") as rewriter:
        rewriter.set_weight(second, second.args[1], program.weight(second.args[1]) * 2)
    assert first.args[1] is not second.args[1]
    torch.testing.assert_close(program(x), 2 * module(x))
    assert len(list(program.weights())) == 2


def test_sweep_drops_unread_nodes_and_weights(program):
    head = program.outputs[0]
    pooled = head.args[0]
    with program.rewrite(by="test") as rewriter:
        other = rewriter.call(aten.mul.Tensor, (pooled, 1.0), before=program.graph.output_node(), sources=[pooled])
        fresh = rewriter.weight("new.weight", torch.ones(5, 8))
        linear = rewriter.call(aten.linear.default, (other, fresh), before=program.graph.output_node(), sources=[head])
        rewriter.replace(head, linear)
    program.verify(full=True)
    names = [name for name, _ in program.weights()]
    assert "new.weight" in names
    assert "head.weight" not in names
    assert not hasattr(program.module, "head")


def test_new_weights_get_free_names(program):
    with program.rewrite(by="test") as rewriter:
        node = rewriter.weight("stem.weight", torch.zeros(1))
        other = rewriter.weight("1.a-b", torch.zeros(1))
        assert node.target == "stem.weight_1"
        assert other.target == "1.a_b"


def test_a_replaced_weight_leaves_its_name(program):
    conv = node_of(program, "conv2d")
    with program.rewrite(by="test") as rewriter:
        fresh = rewriter.set_weight(conv, conv.args[1], program.weight(conv.args[1]) * 2)
    assert fresh.target == "stem.weight"
    torch.testing.assert_close(dict(program.weights())["stem.weight"], program.module.stem.weight)
    program.verify(full=True)


def test_inference_fixes_no_dynamic_dimension(program):
    x = program.inputs[0]
    with program.rewrite(by="test") as rewriter:
        padded = rewriter.call(aten.constant_pad_nd.default, (x, [0, 0]), before=program.calls[0], sources=[x])
        rewriter.replace(
            program.outputs[0],
            rewriter.call(aten.mean.dim, (padded, [1, 2]), before=program.graph.output_node(), sources=[x]),
        )
    program.verify(full=True)
    assert isinstance(padded.meta["val"].shape[0], torch.SymInt)
    assert str(x.meta["val"].shape[0]) in program.dim_names
    assert program(torch.randn(7, 3, 7, 5)).shape == (7, 5)


def test_impure_calls_survive_the_sweep(program):
    x = program.inputs[0]
    with program.rewrite(by="test") as rewriter:
        rewriter.call(aten._assert_tensor_metadata.default, (x,), before=program.calls[0], sources=[x])
    assert any("_assert_tensor_metadata" in str(node.target) for node in program.calls)


def test_clones_share_weights_but_not_graphs(program):
    clone = program.clone()
    assert dict(clone.weights())["stem.weight"] is dict(program.weights())["stem.weight"]
    relu = node_of(clone, "relu")
    with clone.rewrite(by="test") as rewriter:
        rewriter.replace(relu, rewriter.call(aten.silu.default, relu.args, before=relu, sources=[relu]))
    assert "relu" in {node.name for node in program.graph.nodes}
    assert clone.structural_hash() != program.structural_hash()


def test_copied_weights_are_apart(program):
    clone = program.clone(copy_weights=True)
    with torch.no_grad():
        dict(clone.weights())["stem.weight"].zero_()
    assert dict(program.weights())["stem.weight"].abs().sum() > 0


@pytest.mark.parametrize("call", [(aten.pad.default, [0, 0, 0, 0, 1, 1]), (aten.constant_pad_nd.default, [1, 1])])
def test_a_new_padding_leaves_dynamic_sizes_dynamic(program, call):
    target, amounts = call
    relu = node_of(program, "relu")
    with program.rewrite(by="test") as rewriter:
        padded = rewriter.call(target, (relu, amounts), before=relu.next, sources=[relu])
        batch = padded.meta["val"].shape[0]
    assert not isinstance(batch, int)
    assert batch == relu.meta["val"].shape[0]
