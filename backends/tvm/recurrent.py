"""LSTM, GRU and simple recurrent layers as functional operators, unrolled over time.

torch's own decompositions of these choose oneDNN's opaque layers or write in place. The products with the inputs of all
steps are one matrix product; each step has one more, with the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Tensor, "Tensor | None"], State]
"""(the input's share of the gates, state, recurrent weight, its bias) to the next state, whose first is the output."""


def _lstm_cell(gates: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    hidden, memory = state
    i, f, g, o = torch.split(gates + F.linear(hidden, weight, bias), hidden.shape[-1], -1)
    memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory


def _gru_cell(gates: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    (hidden,) = state
    own = torch.split(F.linear(hidden, weight, bias), hidden.shape[-1], -1)
    given = torch.split(gates, hidden.shape[-1], -1)
    reset, update = torch.sigmoid(given[0] + own[0]), torch.sigmoid(given[1] + own[1])
    new = torch.tanh(given[2] + reset * own[2])
    return (new + update * (hidden - new),)


def _simple_cell(activation: Callable[[Tensor], Tensor]) -> Cell:
    return lambda gates, state, weight, bias: (activation(gates + F.linear(state[0], weight, bias)),)


def _layers(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> State:
    """All layers and directions; returns the outputs and the final states, each [layers * directions, batch, size]."""
    per, directions = 4 if has_biases else 2, 2 if bidirectional else 1
    if (train and dropout) or len(params) != per * num_layers * directions:
        raise NotImplementedError("recurrent layers with dropout in training or with projections")
    steps = list(x.unbind(1 if batch_first else 0))
    final: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            weights = params[k * per : (k + 1) * per]
            bias, own_bias = (weights[2], weights[3]) if has_biases else (None, None)
            gates = F.linear(torch.stack(steps), weights[0], bias).unbind(0)
            state = tuple(s[k] for s in states)
            made: list[Tensor] = []
            for step in reversed(gates) if direction else gates:
                state = cell(step, state, weights[1], own_bias)
                made.append(state[0])
            outputs.append(made[::-1] if direction else made)
            final.append(state)
        steps = [torch.cat(pair, -1) if len(pair) > 1 else pair[0] for pair in zip(*outputs, strict=True)]
    whole = torch.stack(steps, 1 if batch_first else 0)
    return (whole, *(torch.stack(parts) for parts in zip(*final, strict=True)))


def _lstm(x: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], *options: object) -> State:
    return _layers(_lstm_cell, x, states, params, *options)  # type: ignore[arg-type]


def _one_state(cell: Cell) -> Callable[..., State]:
    return lambda x, state, params, *options: _layers(cell, x, [state], params, *options)


DECOMPOSITIONS: dict[str, Callable[..., State]] = {
    "aten.lstm": _lstm,
    "aten.gru": _one_state(_gru_cell),
    "aten.rnn_tanh": _one_state(_simple_cell(torch.tanh)),
    "aten.rnn_relu": _one_state(_simple_cell(torch.relu)),
}
"""By operator; same arguments (those of the ``input`` overload) and results."""
