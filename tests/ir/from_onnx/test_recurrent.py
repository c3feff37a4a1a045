"""LSTM, GRU and RNN against ONNX Runtime: every direction, option and the torch op each becomes."""

from typing import Any

import numpy as np
import pytest
import torch

from shave.ir.errors import ReadError
from shave.ir.from_onnx.export import export_onnx
from tests.ir.from_onnx.runtime import assert_like_runtime, export_and_run, one_node_model

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 7, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
RECURRENT_OPS = ("rnn_tanh", "rnn_relu", "gru", "lstm")


def case(op_type: str, *, state: bool = True, lengths: list[int] | None = None, **attributes: Any):
    """A model of one recurrent node with random weights, and its inputs."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.uniform(-0.8, 0.8, shape).astype(np.float32)  # noqa: E731
    gates, sides = GATES[op_type], 2 if attributes.get("direction") == "bidirectional" else 1
    inputs = {"x": draw(STEPS, BATCH, INPUTS)}
    constants = {
        "w": draw(sides, gates * HIDDEN, INPUTS),
        "r": draw(sides, gates * HIDDEN, HIDDEN),
        "b": draw(sides, 2 * gates * HIDDEN),
    }
    order = ["x", "w", "r", "b", ""]
    if lengths is not None:
        constants["lengths"] = np.array(lengths, np.int32)
        order[4] = "lengths"
    if state:
        inputs["h"] = draw(sides, BATCH, HIDDEN)
        order.append("h")
        if op_type == "LSTM":
            inputs["c"] = draw(sides, BATCH, HIDDEN)
            order.append("c")
    if attributes.pop("peepholes", False):
        constants["p"] = draw(sides, 3 * HIDDEN)
        order += [""] * (7 - len(order)) + ["p"]
    outputs = ["y", "y_h", "y_c"][: 3 if op_type == "LSTM" else 2]
    return one_node_model(
        op_type, inputs, constants, order=order, outputs=outputs, hidden_size=HIDDEN, **attributes
    ), inputs


def recurrent_ops(model) -> list[str]:
    """Which of torch's own recurrent ops the exported program holds."""
    names = [str(node.target) for node in export_onnx(model).graph.nodes]
    return [name for name in names if name.removeprefix("aten.").split(".")[0] in RECURRENT_OPS]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("op_type", "attributes", "torch_op"),
    [
        ("LSTM", {}, "aten.lstm.input"),
        ("GRU", {"linear_before_reset": 1}, "aten.gru.input"),
        ("RNN", {}, "aten.rnn_tanh.input"),
        ("RNN", {"activations": ["Relu"]}, "aten.rnn_relu.input"),
    ],
)
def test_standard_forms_become_one_torch_op(op_type, attributes, torch_op, direction):
    sides = 2 if direction == "bidirectional" else 1
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * sides}
    model, inputs = case(op_type, direction=direction, **attributes)
    assert_like_runtime(model, inputs)
    assert recurrent_ops(model) == [torch_op]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_sequence_lengths(op_type, direction):
    model, inputs = case(op_type, direction=direction, lengths=[5, 2, 4])
    assert_like_runtime(model, inputs)
    assert recurrent_ops(model) == []


def test_full_sequence_lengths_change_nothing():
    model, inputs = case("LSTM", lengths=[STEPS] * BATCH)
    assert_like_runtime(model, inputs)
    assert recurrent_ops(model) == ["aten.lstm.input"]


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("LSTM", {"peepholes": True}),
        ("LSTM", {"peepholes": True, "direction": "bidirectional", "input_forget": 1}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"clip": 0.3}),
        ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"], "activation_alpha": [0.3],
                  "activation_beta": [0.4]}),
        ("GRU", {}),
        ("GRU", {"clip": 0.3, "direction": "reverse"}),
        ("GRU", {"clip": 0.3, "linear_before_reset": 1}),
        ("GRU", {"activations": ["HardSigmoid", "ScaledTanh"], "activation_alpha": [0.3, 0.9],
                 "activation_beta": [0.4, 0.7]}),
        ("RNN", {"clip": 0.3}),
        ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.2]}),
        ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.1]}),
        ("RNN", {"activations": ["Elu", "Affine"], "direction": "bidirectional", "activation_alpha": [0.7, 0.5],
                 "activation_beta": [0.1]}),
        ("RNN", {"activations": ["Softplus"]}),
        ("RNN", {"activations": ["Sigmoid"]}),
    ],
)  # fmt: skip
def test_other_forms_are_unrolled(op_type, attributes):
    model, inputs = case(op_type, **attributes)
    assert_like_runtime(model, inputs)
    assert recurrent_ops(model) == []


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_batch_first_layout_is_the_transposed_one(op_type):
    # ONNX Runtime has no layout=1, so the time-first model is the reference.
    model, inputs = case(op_type)
    expected = assert_like_runtime(model, inputs)
    turned = {name: np.ascontiguousarray(array.swapaxes(0, 1)) for name, array in inputs.items()}
    batch_first, _ = case(op_type, layout=1)
    for info in batch_first.graph.input:
        info.type.tensor_type.shape.dim[0].dim_value, info.type.tensor_type.shape.dim[1].dim_value = (
            info.type.tensor_type.shape.dim[1].dim_value,
            info.type.tensor_type.shape.dim[0].dim_value,
        )
    y, *last = export_and_run(batch_first, turned)
    np.testing.assert_allclose(y, expected[0].transpose(2, 0, 1, 3), rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(last, expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs.swapaxes(0, 1), rtol=1e-6, atol=1e-7)


def test_weights_stay_parameters():
    model, _ = case("LSTM")
    assert {name for name, _ in export_onnx(model).named_parameters()} == {"w", "r", "b"}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"activations": ["Tanh", "Swish", "Tanh"]}, "the_node.*unknown activation 'swish'"),
        ({"activations": ["Tanh"]}, "the_node.*1 activations instead of 3"),
    ],
)
def test_wrong_attributes_are_named(attributes, message):
    model, _ = case("LSTM", **attributes)
    with pytest.raises(ReadError, match=message):
        export_onnx(model)


def test_dynamic_sequence_length_is_refused():
    model, _ = case("GRU", state=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "time"
    with pytest.raises(ReadError, match=r"'the_node' \(GRU\) is unrolled, but its sequence length is the dynamic"):
        export_onnx(model)


def test_dynamic_batch_is_kept():
    model, inputs = case("LSTM", state=False)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "batch"
    program = export_onnx(model).module()
    for size in (1, 4):
        x = torch.from_numpy(np.repeat(inputs["x"][:, :1], size, axis=1))
        y, *_ = program(x)
        assert y.shape == (STEPS, 1, size, HIDDEN)
