"""RNN, GRU and LSTM.

What torch's own recurrent ops mean too (default activations, no peepholes, no clipping, whole sequences) becomes one
``aten.rnn_tanh``, ``aten.rnn_relu``, ``aten.gru`` or ``aten.lstm``, which later stages know as a whole. Everything else
is unrolled over time: the input's share of the gates is one matrix product for the whole sequence, the recurrent share
one small product per step.

The sequence length must be static in both forms (the exporter fixes it for torch's ops as well); batch may be dynamic.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shave.ir.from_onnx.control_flow import MOST_REPEATS, UnrollError
from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_ints, as_tensor, is_host

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]

# name -> (function of x, alpha, beta; default alpha; default beta); None: the function has no such parameter.
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], float | None, float | None]] = {
    "relu": (lambda x: torch.relu(x), None, None),
    "tanh": (lambda x: torch.tanh(x), None, None),
    "sigmoid": (lambda x: torch.sigmoid(x), None, None),
    "softsign": (lambda x: F.softsign(x), None, None),
    "softplus": (lambda x: F.softplus(x), None, None),
    "leakyrelu": (lambda x, alpha: F.leaky_relu(x, alpha), 0.01, None),
    "thresholdedrelu": (lambda x, alpha: torch.where(x > alpha, x, 0.0), 1.0, None),
    "elu": (lambda x, alpha: torch.where(x < 0, alpha * torch.expm1(x), x), 1.0, None),
    "affine": (lambda x, alpha, beta: alpha * x + beta, 1.0, 0.0),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0.0, 1.0), 0.2, 0.5),
}


@dataclass(frozen=True)
class _Direction:
    """Everything one direction of a recurrent layer needs, with the direction axis taken off.

    Attributes:
        weight: Input weights, (gates * hidden, inputs).
        recurrence: Recurrent weights, (gates * hidden, hidden).
        input_bias: Bias added to the input's share, (gates * hidden).
        recurrent_bias: Bias added to the recurrent share, (gates * hidden).
        peepholes: LSTM only, (3 * hidden) in the order input, output, forget.
        activations: The functions f, g, h of the ONNX equations, clipping of their inputs included.
        backwards: Walk the sequence from its end.
    """

    weight: Tensor
    recurrence: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor
    peepholes: Tensor | None
    activations: tuple[Activation, ...]
    backwards: bool


# One time step: (direction, the input's share of the gates (batch, gates * hidden), state) -> new state, whose first
# tensor is the output.
Cell = Callable[[_Direction, Tensor, State], State]


@onnx_op("RNN", since=7)
def rnn(
    node: OnnxNode,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Value | None = None,
    initial_h: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """One-gate recurrence h = f(W x + R h + b)."""
    layer = _Layer(node, 1, ("Tanh",), x, w, r, b, sequence_lens, (initial_h,))
    for name, op in (("tanh", torch.ops.aten.rnn_tanh.input), ("relu", torch.ops.aten.rnn_relu.input)):
        if layer.is_plain((name,)):
            return layer.whole(op, order=(0,))

    def cell(side: _Direction, gates: Tensor, state: State) -> State:
        (f,) = side.activations
        return (f(gates + F.linear(state[0], side.recurrence, side.recurrent_bias)),)

    return layer.unrolled(cell)


@onnx_op("GRU", since=7)
def gru(
    node: OnnxNode,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Value | None = None,
    initial_h: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gated recurrent unit; torch's equals ONNX's only with ``linear_before_reset=1``."""
    layer = _Layer(node, 3, ("Sigmoid", "Tanh"), x, w, r, b, sequence_lens, (initial_h,))
    linear_before_reset = bool(node.attr("linear_before_reset", 0))
    if linear_before_reset and layer.is_plain(("sigmoid", "tanh")):
        return layer.whole(torch.ops.aten.gru.input, order=(1, 0, 2))  # z r h -> r z n

    def cell(side: _Direction, gates: Tensor, state: State) -> State:
        f, g = side.activations
        (h,) = state
        zr, n = _split(gates, 2 * layer.hidden, -1)
        zr_weight, n_weight = _split(side.recurrence, 2 * layer.hidden, 0)
        zr_bias, n_bias = _split(side.recurrent_bias, 2 * layer.hidden, 0)
        z, reset = f(zr + F.linear(h, zr_weight, zr_bias)).chunk(2, -1)
        if linear_before_reset:
            n = g(n + reset * F.linear(h, n_weight, n_bias))
        else:
            n = g(n + F.linear(reset * h, n_weight, n_bias))
        return ((1 - z) * n + z * h,)

    return layer.unrolled(cell)


@onnx_op("LSTM", since=7)
def lstm(
    node: OnnxNode,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Value | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Long short-term memory, with peepholes and coupled gates (``input_forget``) where the node asks for them."""
    layer = _Layer(node, 4, ("Sigmoid", "Tanh", "Tanh"), x, w, r, b, sequence_lens, (initial_h, initial_c), p)
    coupled = bool(node.attr("input_forget", 0))
    if not coupled and layer.is_plain(("sigmoid", "tanh", "tanh")):
        return layer.whole(torch.ops.aten.lstm.input, order=(0, 2, 3, 1))  # i o f c -> i f g o

    def cell(side: _Direction, gates: Tensor, state: State) -> State:
        f, g, h = side.activations
        hidden, memory = state
        i, o, forget, c = (gates + F.linear(hidden, side.recurrence, side.recurrent_bias)).chunk(4, -1)
        if side.peepholes is not None:
            i_peep, o_peep, f_peep = side.peepholes.chunk(3)
            i, forget = i + i_peep * memory, forget + f_peep * memory
        i = f(i)
        forget = 1 - i if coupled else f(forget)
        memory = forget * memory + i * g(c)
        o = f(o + o_peep * memory if side.peepholes is not None else o)
        return o * h(memory), memory

    return layer.unrolled(cell)


def _split(tensor: Tensor, size: int, axis: int) -> tuple[Tensor, Tensor]:
    return tensor.narrow(axis, 0, size), tensor.narrow(axis, size, tensor.shape[axis] - size)


class _Layer:
    """The inputs of a recurrent node brought to one form: time first, every optional input filled in."""

    def __init__(
        self,
        node: OnnxNode,
        gates: int,
        default_activations: tuple[str, ...],
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        sequence_lens: Value | None,
        initial: tuple[Tensor | None, ...],
        p: Tensor | None = None,
    ) -> None:
        self.batch_first = bool(node.attr("layout", 0))
        self.x = x.transpose(0, 1) if self.batch_first else x
        self.hidden = int(r.shape[-1])
        self.gates = gates
        direction = node.attr("direction", "forward")
        sides = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(direction)
        if sides is None or len(sides) != w.shape[0]:
            raise ValueError(f"direction {direction!r} does not fit {w.shape[0]} sets of weights")
        if not isinstance(self.x.shape[0], int):
            raise UnrollError(node, "sequence length", self.x.shape[0])
        self.steps = self.x.shape[0]
        self.clip = node.attr("clip", None)
        self.names, functions = _activations(node, default_activations, len(sides), self.clip)
        self.b = b
        self.has_peepholes = p is not None
        batch = self.x.shape[1]
        self.initial = tuple(
            self.x.new_zeros((len(sides), batch, self.hidden))
            if state is None
            else (state.transpose(0, 1) if self.batch_first else state)
            for state in initial
        )
        self.lengths = None
        if sequence_lens is not None and not self._covers_all(sequence_lens):
            self.lengths = as_tensor(sequence_lens)
        self.directions = [
            _Direction(
                weight=w[k],
                recurrence=r[k],
                input_bias=self._bias(k, 0),
                recurrent_bias=self._bias(k, 1),
                peepholes=None if p is None else p[k],
                activations=functions[k],
                backwards=backwards,
            )
            for k, backwards in enumerate(sides)
        ]

    def _covers_all(self, sequence_lens: Value) -> bool:
        return is_host(sequence_lens) and all(n == self.steps for n in as_ints(sequence_lens))

    def _bias(self, side: int, half: int) -> Tensor:
        size = self.gates * self.hidden
        if self.b is None:
            return self.x.new_zeros(size)
        return self.b[side][half * size : (half + 1) * size]

    def is_plain(self, activations: tuple[str, ...]) -> bool:
        """Whether torch's own op with these activations computes this layer."""
        return (
            all(names == activations for names in self.names)
            and not self.clip
            and not self.has_peepholes
            and self.lengths is None
        )

    def whole(self, op: Callable[..., tuple[Tensor, ...]], order: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The layer as one of torch's recurrent ops.

        Args:
            op: ``aten.lstm.input``, ``aten.gru.input``, ``aten.rnn_tanh.input`` or ``aten.rnn_relu.input``.
            order: Where each of torch's gates stands among ONNX's.
        """
        has_biases = self.b is not None
        parameters = []
        for side in self.directions:
            biases = (side.input_bias, side.recurrent_bias) if has_biases else ()
            parameters += [self._reordered(weight, order) for weight in (side.weight, side.recurrence, *biases)]
        bidirectional = len(self.directions) == 2
        # torch walks backwards only as the second of two directions: a lone reverse layer reads and writes flipped
        # sequences.
        flipped = not bidirectional and self.directions[0].backwards
        x = self.x.flip(0) if flipped else self.x
        state = list(self.initial) if len(self.initial) > 1 else self.initial[0]
        y, *last = op(x, state, parameters, has_biases, 1, 0.0, False, bidirectional, False)
        y = y.flip(0) if flipped else y
        y = y.reshape(*y.shape[:2], len(self.directions), self.hidden).transpose(1, 2)
        return self._outputs(y, last)

    def _reordered(self, weight: Tensor, order: tuple[int, ...]) -> Tensor:
        if len(order) == 1:
            return weight
        blocks = weight.chunk(len(order))
        return torch.cat([blocks[gate] for gate in order])

    def unrolled(self, cell: Cell) -> tuple[Tensor, ...]:
        """The layer as one chain of cells per direction."""
        if self.steps > MOST_REPEATS:
            raise ValueError(f"has {self.steps} time steps, at most {MOST_REPEATS} can be unrolled")
        sequences, finals = [], []
        for k, side in enumerate(self.directions):
            y, final = self._walk(cell, side, tuple(state[k] for state in self.initial))
            sequences.append(y)
            finals.append(final)
        last = [torch.stack(states) for states in zip(*finals, strict=True)]
        return self._outputs(torch.stack(sequences, 1), last)

    def _walk(self, cell: Cell, side: _Direction, state: State) -> tuple[Tensor, State]:
        inputs = F.linear(self.x, side.weight, side.input_bias)
        outputs: list[Tensor] = []
        for t in reversed(range(self.steps)) if side.backwards else range(self.steps):
            new = cell(side, inputs[t], state)
            if self.lengths is None:
                state, y = new, new[0]
            else:
                # A sequence that has ended (or, backwards, not yet begun) keeps its state and gives zeros.
                alive = (t < self.lengths).unsqueeze(-1)
                state = tuple(torch.where(alive, after, before) for after, before in zip(new, state, strict=True))
                y = torch.where(alive, new[0], 0.0)
            outputs.append(y)
        return torch.stack(outputs[::-1] if side.backwards else outputs), state

    def _outputs(self, y: Tensor, last: list[Tensor]) -> tuple[Tensor, ...]:
        """(time, directions, batch, hidden) and final states (directions, batch, hidden) in the node's layout."""
        if self.batch_first:
            return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
        return (y, *last)


def _activations(
    node: OnnxNode, default: tuple[str, ...], sides: int, clip: float | None
) -> tuple[list[tuple[str, ...]], list[tuple[Activation, ...]]]:
    """Names and functions per direction; alphas and betas go, in order, to the functions that take them."""
    given = node.attr("activations", None)
    names = [str(name).lower() for name in given] if given else [name.lower() for name in default] * sides
    alphas, betas = iter(node.attr("activation_alpha", None) or ()), iter(node.attr("activation_beta", None) or ())
    if len(names) != len(default) * sides:
        raise ValueError(f"has {len(names)} activations instead of {len(default) * sides}")
    functions: list[Activation] = []
    for index, name in enumerate(names):
        if name not in _ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; known: {', '.join(sorted(_ACTIVATIONS))}")
        function, alpha, beta = _ACTIVATIONS[name]
        parameters = [
            float(next(given_values, standard))
            for given_values, standard in ((alphas, alpha), (betas, beta))
            if standard is not None
        ]
        # Gates are clipped; the third function, of an LSTM's cell state, is left alone, as in ONNX Runtime.
        of_gate = index % len(default) < 2
        functions.append(_clipped(function, parameters, clip if of_gate else None))
    per_side = len(default)
    return (
        [tuple(names[k : k + per_side]) for k in range(0, len(names), per_side)],
        [tuple(functions[k : k + per_side]) for k in range(0, len(functions), per_side)],
    )


def _clipped(function: Callable[..., Tensor], parameters: list[float], clip: float | None) -> Activation:
    if not clip:
        return lambda x: function(x, *parameters)
    bound = float(clip)
    return lambda x: function(torch.clamp(x, -bound, bound), *parameters)
