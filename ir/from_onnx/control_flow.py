"""If, Loop and Scan.

What is decided while reading (a constant condition, a constant trip count) leaves no trace: the branch is inlined, the
body unrolled. An ``If`` on a computed condition becomes ``torch.cond``. A loop whose end depends on the data that runs
through the model is refused.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar, copy_context

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from shave.ir.errors import ReadError
from shave.ir.from_onnx.graph import Graph, TensorSpec
from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_tensor, torch_dtype, weights

# A body repeated more often could be neither traced nor compiled in reasonable time.
MOST_REPEATS = 2048

# How often the loops around repeat what is being run.
_repeats_around: ContextVar[int] = ContextVar("repeats_around", default=1)


class UnrollError(ReadError):
    """A dimension that a node is unrolled over is dynamic: no size that shave might pick would be the right one."""

    def __init__(self, node: OnnxNode, what: str, size: object) -> None:
        super().__init__(
            f"node '{node.name}' ({node.op_type}) is unrolled, but its {what} is the dynamic dimension {size}; "
            "give the model's input a fixed size there"
        )


@onnx_op("If", since=7, opaque=True)
def if_(node: OnnxNode, condition: Value) -> list[Value]:
    """One branch if the condition is known, else both as ``torch.cond``."""
    then_branch, else_branch = node.attr("then_branch"), node.attr("else_branch")
    if isinstance(condition, np.ndarray):
        return node.run_subgraph(then_branch if bool(condition.reshape(-1)[0]) else else_branch, [])
    return list(_cond(node, as_tensor(condition), then_branch, else_branch))


@onnx_op("Loop", since=7, opaque=True)
def loop(node: OnnxNode, trip_count: Value | None, condition: Value | None, *initial: Value) -> list[Value]:
    """The body, once for each iteration; carried values that are known while reading stay known."""
    body: Graph = node.attr("body")
    trips = _known_trips(node, trip_count)
    alive = condition is None or _known_condition(condition)
    carried = list(initial)
    rows: list[list[Value]] = []
    while alive and (trips is None or len(rows) < trips):
        again, *results = _repeat(node, body, len(rows), [np.asarray(len(rows)), np.asarray(True), *carried])
        alive = _known_condition(again)
        carried, row = results[: len(initial)], results[len(initial) :]
        rows.append(row)
    specs = body.outputs[1 + len(initial) :]
    collected = [_stack([row[k] for row in rows], 0) if rows else _no_rows(spec) for k, spec in enumerate(specs)]
    return [*carried, *collected]


@onnx_op("Scan", since=9, opaque=True)
def scan(node: OnnxNode, *inputs: Value) -> list[Value]:
    """The body, once for each slice of the scanned inputs."""
    body: Graph = node.attr("body")
    count = node.attr("num_scan_inputs")
    carried, scanned = list(inputs[:-count]), inputs[-count:]
    in_axes, in_backwards = node.attr("scan_input_axes", [0] * count), node.attr("scan_input_directions", [0] * count)
    lengths = {value.shape[axis] for value, axis in zip(scanned, in_axes, strict=True)}
    if len(lengths) != 1:
        raise ValueError(f"the scanned inputs have different lengths: {sorted(map(str, lengths))}")
    (length,) = lengths
    if not isinstance(length, int):
        raise UnrollError(node, "length", length)
    rows = []
    for step in range(length):
        slices = [
            _slice(value, axis, length - 1 - step if backwards else step)
            for value, axis, backwards in zip(scanned, in_axes, in_backwards, strict=True)
        ]
        results = _repeat(node, body, step, [*carried, *slices])
        carried, row = results[: len(carried)], results[len(carried) :]
        rows.append(row)
    specs = body.outputs[len(carried) :]
    axes = node.attr("scan_output_axes", [0] * len(specs))
    backwards = node.attr("scan_output_directions", [0] * len(specs))
    collected = []
    for k, spec in enumerate(specs):
        column = [row[k] for row in rows]
        collected.append(_stack(column[::-1] if backwards[k] else column, axes[k]) if rows else _no_rows(spec))
    return [*carried, *collected]


def _repeat(node: OnnxNode, body: Graph, index: int, inputs: Sequence[Value]) -> list[Value]:
    """Run a loop's body for the iteration ``index``."""
    repeats = _repeats_around.get() * (index + 1)
    if repeats > MOST_REPEATS:
        raise ValueError(f"is unrolled more than {MOST_REPEATS} times, counting the loops around it")
    token = _repeats_around.set(repeats)
    try:
        return node.run_subgraph(body, inputs)
    finally:
        _repeats_around.reset(token)


def _known_trips(node: OnnxNode, trip_count: Value | None) -> int | None:
    if trip_count is None:
        return None
    if isinstance(trip_count, Tensor):
        raise ValueError("the trip count is computed from the model's inputs, only a constant one can be unrolled")
    trips = trip_count.reshape(-1)[0]
    if isinstance(trips, torch.SymInt):
        raise UnrollError(node, "trip count", trips)
    return int(trips)


def _known_condition(condition: Value) -> bool:
    if isinstance(condition, Tensor):
        raise ValueError(
            "the condition to go on is computed from the model's inputs, only a constant one can be unrolled"
        )
    return bool(condition.reshape(-1)[0])


def _slice(value: Value, axis: int, index: int) -> Value:
    return np.asarray(value.take(index, axis)) if isinstance(value, np.ndarray) else value.select(axis, index)


def _stack(values: Sequence[Value], axis: int) -> Value:
    if any(isinstance(value, Tensor) for value in values):
        return torch.stack([as_tensor(value) for value in values], axis)
    return np.stack(values, axis)


def _no_rows(spec: TensorSpec) -> Value:
    """What a loop that never runs gives for a scanned output: no rows of the declared shape."""
    dims = [dim for dim in spec.shape or () if isinstance(dim, int)]
    if spec.shape is None or len(dims) != len(spec.shape):
        raise ValueError(f"never runs, and its body does not state the shape of '{spec.name}'")
    return torch.empty((0, *dims), dtype=torch_dtype(spec.dtype))


def _cond(node: OnnxNode, condition: Tensor, *branches: Graph) -> tuple[Tensor, ...]:
    """``torch.cond`` over two subgraphs.

    Its branches may use no tensor but their arguments. So both are run twice: the first time, outside of the trace,
    tells which weights and constants they ask for; these and the tensors of the graphs around become arguments.
    """
    operands = _Operands()
    outer_names = {name for branch in branches for name in _outer_names(branch)}
    captured = {name: node.scope.lookup(name) for name in sorted(outer_names)}
    outer = {name: operands.position(value) for name, value in captured.items() if isinstance(value, Tensor)}
    asked: list[list[int]] = []
    for branch in branches:
        noted: list[int] = []
        with disable_proxy_modes_tracing(), weights(operands.recorder(noted)):
            _run_branch(node, branch, {name: operands.tensors[position] for name, position in outer.items()})
        asked.append(noted)

    def runner(branch: Graph, positions: list[int]) -> Callable[..., tuple[Tensor, ...]]:
        def run(*arguments: Tensor) -> tuple[Tensor, ...]:
            answers = iter(positions)
            with weights(lambda array: arguments[next(answers)]):
                results = _run_branch(node, branch, {name: arguments[position] for name, position in outer.items()})
            return tuple(_own(result, arguments) for result in results)

        return run

    runners = [runner(branch, positions) for branch, positions in zip(branches, asked, strict=True)]
    results: tuple[Tensor, ...] = torch.ops.higher_order.cond(condition.squeeze(), *runners, tuple(operands.tensors))
    return results


class _Operands:
    """The arguments of a ``torch.cond``, each tensor once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def position(self, tensor: Tensor) -> int:
        """Where the tensor stands among the arguments, from now on."""
        for position, known in enumerate(self.tensors):
            if known is tensor:
                return position
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def recorder(self, noted: list[int]) -> Callable[[np.ndarray], Tensor]:
        """Answers what `as_tensor` asks as it is answered outside of the branch, and notes the arguments' positions."""
        around = copy_context()

        def find(array: np.ndarray) -> Tensor:
            noted.append(self.position(around.run(as_tensor, array)))
            return self.tensors[noted[-1]]

        return find


def _outer_names(graph: Graph) -> Iterator[str]:
    """The names that a subgraph takes from the graphs around it."""
    own = {spec.name for spec in graph.inputs} | set(graph.constants)
    for node in graph.nodes:
        inner = [name for subgraph in node.subgraphs() for name in _outer_names(subgraph)]
        yield from (name for name in (*node.inputs, *inner) if name and name not in own)
        own.update(node.outputs)
    yield from (spec.name for spec in graph.outputs if spec.name not in own)


def _run_branch(node: OnnxNode, branch: Graph, captured: dict[str, Tensor]) -> list[Tensor]:
    scope = dataclasses.replace(node.scope, values=dict(captured), parent=node.scope)
    return [as_tensor(value) for value in scope.run_subgraph(branch, [], node.name)]


def _own(result: Tensor, arguments: Sequence[Tensor]) -> Tensor:
    """The result in memory of its own: a branch may return neither an argument nor a view of one."""
    storages = {argument.untyped_storage()._cdata for argument in arguments}
    return result.clone() if result.untyped_storage()._cdata in storages else result
