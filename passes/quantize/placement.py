"""Decides which values become integers, and tells why for each call. Changes nothing: insertion is another file.

Integers are wanted by products. From there the wish goes backwards: to what a product reads, through movement and
pooling that can work on integers, and to the other operand of pointwise calls whose result goes on as integers. A value
that nothing wants as integers stays as it is, so there is no pair of quantize and dequantize that leads nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.passes.quantize.epilogue import Epilogues
from shave.passes.quantize.normalisation import decomposed
from shave.passes.quantize.table import PRODUCTS, SAME_RANGE, Kind, constants_of, is_float, kind_of

SCOPED = (Kind.PRODUCT, Kind.POOLING, Kind.MOVEMENT, Kind.POINTWISE)
"""What a scope can leave out."""


@dataclass
class Placement:
    """What becomes of every call.

    Attributes:
        readers: For each value that is quantized, the calls that read it so; in execution order of the values.
        products: Calls that multiply integers.
        weights: Those of them that have constant weights, with the node of the weights.
        tied: Pairs of values that share one scale.
        heads: For each pointwise call the call on whose result it is computed, which may be itself.
        borders: The values that are rounded by a conversion of their own, as nothing that makes them rounds them on the
            way, or as others read them as floats.
        reasons: For each call, whether it works on integers and a text.
    """

    readers: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    products: list[fx.Node] = field(default_factory=list)
    weights: dict[fx.Node, fx.Node] = field(default_factory=dict)
    tied: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    heads: Mapping[fx.Node, fx.Node] = field(default_factory=dict)
    borders: list[fx.Node] = field(default_factory=list)
    reasons: dict[fx.Node, tuple[bool, str]] = field(default_factory=dict)

    def groups(self) -> list[list[fx.Node]]:
        """The quantized values, those of one scale together."""
        return connected(self.readers, self.tied)


def connected(nodes: Iterable[fx.Node], pairs: Iterable[tuple[fx.Node, fx.Node]]) -> list[list[fx.Node]]:
    """Nodes, those together that pairs of them connect; in the order given."""
    nodes = list(nodes)
    parent = {node: node for node in nodes}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for first, second in pairs:
        parent[find(second)] = find(first)
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        found.setdefault(find(node), []).append(node)
    return list(found.values())


def place(program: Program, chosen: Collection[fx.Node]) -> Placement:
    """Decide for a program.

    Args:
        program: In float; weights may be integers behind a dequantize.
        chosen: The calls that may work on integers, as scopes have it.
    """
    return _Placer(program, chosen).run()


class _Placer:
    def __init__(self, program: Program, chosen: Collection[fx.Node]) -> None:
        self._chosen = chosen
        self._constants = constants_of(program)
        self._calls = [node for node in program.calls if node not in self._constants]
        normalisations = decomposed(program)
        self._kinds = {node: Kind.NORMALISATION if node in normalisations else kind_of(node) for node in self._calls}
        self._normalisations = normalisations
        self._epilogues = Epilogues(self._calls, self._kinds, self._constants)
        self._flows: set[fx.Node] = set()
        self._readers: dict[fx.Node, list[fx.Node]] = {}
        self._wanted_tuples: set[fx.Node] = set()
        self._result = Placement()

    def run(self) -> Placement:
        for node in reversed(self._calls):
            handle = {
                Kind.PRODUCT: self._product,
                Kind.POOLING: self._pooling,
                Kind.MOVEMENT: self._movement,
                Kind.POINTWISE: self._pointwise,
                Kind.NORMALISATION: self._normalisation,
                Kind.OTHER: self._other,
            }[self._kinds[node]]
            self._result.reasons[node] = handle(node)
        result, order = self._result, {node: place for place, node in enumerate(self._calls)}
        result.readers = {
            value: sorted(self._readers[value], key=order.__getitem__)
            for value in sorted(self._readers, key=lambda value: (order.get(value, -1), value.name))
        }
        result.tied = [(a, b) for a, b in result.tied if a in result.readers and b in result.readers]
        result.products.reverse()
        result.heads = self._epilogues.head
        result.borders = [value for value in result.readers if self._is_border(value)]
        result.reasons = {node: result.reasons[node] for node in self._calls}
        return result

    # One kind each: whether the call works on integers, and the text for the report

    def _product(self, node: fx.Node) -> tuple[bool, str]:
        if node not in self._chosen:
            return False, "left out by its scope"
        if not is_float(node):
            return False, f"its result is {_dtype(node)}: float32 alone is quantized"
        operands = PRODUCTS[op_name(node)]
        factors = [argument(node, operands.data), argument(node, operands.weight)]
        weights = [each for each in factors if each in self._constants]
        if len(weights) == 2:
            return False, "it depends on weights alone: fold-constants computes it"
        if weights and not _is_weight(weights[0]):
            return False, "its weights are computed from others: fold-constants makes them plain"
        if any(_is_dequantized(self._moved(each)) for each in factors if each not in weights):
            return False, "what it reads is quantized already"
        if not weights and operands.axis == 0:
            return False, "its weights depend on the inputs"
        self._result.products.append(node)
        if weights:
            self._result.weights[node] = weights[0]
        for each in dict.fromkeys(factors):
            if each not in weights:
                self._want(each, node)
        return True, "integer product"

    def _pooling(self, node: fx.Node) -> tuple[bool, str]:
        if not self._goes_on(node):
            return False, "nothing reads its result as integers"
        if node not in self._chosen:
            return False, "left out by its scope"
        sources = self._epilogues.activations(node)
        if len(sources) != 1 or not is_float(node):
            return False, f"{op_name(node)} of {len(sources)} values"
        self._want(sources[0], node)
        if node in self._readers and op_name(node) in SAME_RANGE:
            self._result.tied.append((sources[0], node))
            return True, f"on integers, with the scale of {sources[0].name}"
        return True, "on integers"

    def _movement(self, node: fx.Node) -> tuple[bool, str]:
        if node not in self._readers and node not in self._wanted_tuples:
            return False, "nothing reads its result as integers"
        if node not in self._chosen:
            return False, "left out by its scope"
        sources = [each for each in node.all_input_nodes if is_float(each)]
        tuples = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), (tuple, list))]
        if any(self._kinds.get(each) is not Kind.MOVEMENT for each in tuples):
            return False, f"takes a part of what {tuples[0].name} gives, in float"
        self._wanted_tuples.update(tuples)
        for source in sources:
            self._want(source, node)
            for end in (node, *node.users) if node in self._wanted_tuples else (node,):
                self._result.tied.append((source, end))
        return True, f"moves integers, with the scale of {', '.join(each.name for each in [*sources, *tuples])}"

    def _pointwise(self, node: fx.Node) -> tuple[bool, str]:
        head = self._epilogues.head[node]
        where = "by itself" if head is node else f"on the result of {head.name}"
        if any(self._kinds.get(user) is Kind.NORMALISATION for user in node.users if not self._ends(user)):
            return False, f"in float, {where}: it feeds a normalisation"
        if not is_float(node) or not self._goes_on(node):
            return False, f"in float, {where}: nothing reads its result as integers"
        if node not in self._chosen:
            return False, "left out by its scope"
        self._flows.add(node)
        others = self._epilogues.from_memory(node)
        for each in others:
            self._want(each, node)
        if others:
            return True, f"reads {', '.join(each.name for each in others)} as integers, computed {where}"
        return False, f"in float, {where}, before that is rounded"

    def _normalisation(self, node: fx.Node) -> tuple[bool, str]:
        if node in self._normalisations:
            return False, f"part of a normalisation that ends in {self._normalisations[node].name}: stays in float"
        return False, f"{op_name(node).removeprefix('aten.')} stays in float: integer statistics are unstable"

    def _other(self, node: fx.Node) -> tuple[bool, str]:
        if op_name(node).startswith("quantized_decomposed."):
            return False, "quantized already"
        return False, f"{op_name(node)} has no integer form"

    # What goes on as integers

    def _goes_on(self, node: fx.Node) -> bool:
        if node in self._readers:
            return True
        return any(user in self._flows and self._epilogues.at_hand.get(user) is node for user in node.users)

    def _moved(self, value: fx.Node) -> fx.Node:
        """The value of which another one has the elements, in another order or shape."""
        while self._kinds.get(value) is Kind.MOVEMENT and len(self._epilogues.activations(value)) == 1:
            (value,) = self._epilogues.activations(value)
        return value

    def _is_border(self, value: fx.Node) -> bool:
        if any(user not in self._readers[value] for user in value.users):
            return True
        maker = self._epilogues.head.get(value, value)
        kind = self._kinds.get(maker)
        moved = kind in (Kind.MOVEMENT, Kind.POOLING) and self._result.reasons[maker][0]
        return not moved and kind not in (Kind.PRODUCT, Kind.POINTWISE)

    def _want(self, value: fx.Node, reader: fx.Node) -> None:
        readers = self._readers.setdefault(value, [])
        if reader not in readers:
            readers.append(reader)

    def _ends(self, node: fx.Node) -> bool:
        """Whether an operator that counts as a normalisation takes no statistics of what it reads (attention)."""
        return op_name(node) == "aten.scaled_dot_product_attention"


def selectable(calls: Iterable[fx.Node]) -> list[fx.Node]:
    """The calls that a scope can choose or leave out."""
    return [node for node in calls if kind_of(node) in SCOPED]


def _is_weight(node: fx.Node) -> bool:
    return node.op == "get_attr" or (_is_dequantized(node) and all(x.op == "get_attr" for x in node.all_input_nodes))


def _is_dequantized(node: object) -> bool:
    return isinstance(node, fx.Node) and op_name(node).startswith("quantized_decomposed.dequantize")


def _dtype(node: fx.Node) -> str:
    return str(getattr(node.meta.get("val"), "dtype", "no tensor")).removeprefix("torch.")
