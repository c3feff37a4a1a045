"""Count the work behind each kernel of a lowered program."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import fx

from shave.backends.kernel_cost import KernelCost
from shave.backends.tvm.quantized import DEQUANTIZE, DEQUANTIZE_CHANNELS
from shave.backends.tvm.schedules import Kernel
from shave.ir.ops import OPS, Trait, has_trait, op_name
from shave.ir.program import Program
from shave.ir.shapes import hints


class KernelCall(Protocol):
    """What is asked of a call; see :class:`shave.backends.tvm.lower.KernelCall`."""

    @property
    def name(self) -> str:
        """Name of the function."""

    @property
    def family(self) -> str:
        """The kernel family, or ``tail``."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that it has a part in."""

    @property
    def kernel(self) -> Kernel | None:
        """What an own kernel computes."""


def kernel_costs(program: Program, calls: Sequence[KernelCall]) -> tuple[KernelCost, ...]:
    """One entry for each function that the calls name, in the order of their first calls.

    A node is computed by one call, and its work counts there: by the last one of an own family that has a part in it,
    or, if there is none, by the last one at all. What other calls do for it (change a layout, convert) is no work that
    the program needs.

    Args:
        program: The program whose nodes the calls name, all sizes known.
        calls: Calls of functions of the library, in their order.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    owner: dict[str, int] = {}
    for own in (False, True):
        for position, call in enumerate(calls):
            if (call.family != "tail") == own:
                owner.update(dict.fromkeys(call.nodes, position))
    names = dict.fromkeys(call.name for call in calls)
    counted = {name: [(k, call) for k, call in enumerate(calls) if call.name == name] for name in names}
    costs = []
    for name, positions in counted.items():
        parts = [[nodes[n] for n in call.nodes if owner[n] == k and n in nodes] for k, call in positions]
        costs.append(
            KernelCost(
                name=name,
                family=positions[0][1].family,
                calls=len(positions),
                nodes=tuple(node.name for part in parts for node in part),
                macs=sum(_macs(node) for part in parts for node in part),
                bytes=sum(_traffic(part, owner) for part in parts),
                integers=any(call.kernel is not None and call.kernel.integers for _, call in positions),
            )
        )
    return tuple(costs)


def _macs(node: fx.Node) -> int:
    row = OPS.get(op_name(node))
    return 0 if row is None or row.macs is None else row.macs(node, lambda value: hints(value.meta["val"].shape))  # type: ignore[attr-defined]


def _traffic(nodes: Collection[fx.Node], computed: Collection[str]) -> int:
    """Bytes of what the nodes read from others, each value once, and of what others read from them."""
    reads: dict[fx.Node, int] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            if source not in nodes:
                held = _held(source, computed)
                reads[held] = max(reads.get(held, 0), _read(node, held))
    writes = [node for node in nodes if any(user not in nodes for user in node.users)]
    return sum(reads.values()) + sum(_bytes(node.meta.get("val")) for node in writes)


def _held(source: fx.Node, computed: Collection[str]) -> fx.Node:
    """What lies in memory: the integers of numbers that no kernel computes from them."""
    if source.name not in computed and op_name(source) in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
        return source.all_input_nodes[0]
    return source


def _read(node: fx.Node, source: fx.Node) -> int:
    """What only moves elements (embedding, slice ...) reads no more of them than it writes."""
    size = _bytes(source.meta.get("val"))
    return min(size, _bytes(node.meta.get("val"))) if has_trait(node, Trait.MOVEMENT) else size


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return torch.Size(hints(value.shape)).numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, Iterable) and not isinstance(value, str) else 0
