"""Finds normalisations that are written out as elementary operators, as ONNX exporters write them.

``(x - mean(x)) / sqrt(mean((x - mean(x))**2) + eps)`` and its many variants: what they have in common is a square root
of reductions that all start from one value.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from shave.ir.ops import Trait, argument, has_trait, op_name
from shave.ir.program import Program

_ROOTS = ("aten.sqrt", "aten.rsqrt")
_REDUCTIONS = ("aten.mean", "aten.sum", "aten.var", "aten.std", "aten.linalg_vector_norm", "aten.norm")
_SHAPES = ("aten.expand", "aten.unsqueeze", "aten.squeeze", "aten.reshape")


def decomposed(program: Program) -> dict[fx.Node, fx.Node]:
    """The calls that make up normalisations, each with the call that gives the result.

    Softmax written as exponentials over their sum counts, too.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in program.calls:
        statistic = _statistic(node)
        if statistic is not None:
            source, inner = statistic
            inner.update(_centred(source))
            for last in _divisions(node, inner):
                found.update(dict.fromkeys([*inner, node, *_path(node, last), last], last))
        elif op_name(node) == "aten.div":
            found.update(dict.fromkeys(_softmax(node), node))
    return found


def _statistic(node: fx.Node) -> tuple[fx.Node, set[fx.Node]] | None:
    """For a root of a variance or of a mean square, or for a norm: what it is of, and the calls on the way."""
    norm = op_name(node) in ("aten.linalg_vector_norm", "aten.norm", "aten.std")
    if not (norm or op_name(node) in _ROOTS or _is_power(node, (0.5, -0.5))):
        return None
    inner: set[fx.Node] = set()
    reductions = [node] if norm else _ends(node, inner)
    if not reductions or any(op_name(each) not in _REDUCTIONS for each in reductions):
        return None
    sources = {_source(each, inner) for each in reductions}
    if len(sources) != 1:
        return None
    return sources.pop(), inner


def _ends(node: fx.Node, passed: set[fx.Node]) -> list[fx.Node]:
    """Where elementary calls ahead of a node come from."""
    ends: list[fx.Node] = []
    for operand in _operands(node):
        if has_trait(operand, Trait.ELEMENTWISE) or op_name(operand) in _SHAPES:
            passed.add(operand)
            ends += _ends(operand, passed)
        else:
            ends.append(operand)
            passed.add(operand)
    return list(dict.fromkeys(ends))


def _source(reduction: fx.Node, passed: set[fx.Node]) -> fx.Node:
    """What a reduction is of, behind squares and the distance from the mean."""
    value = _operands(reduction)[0] if _operands(reduction) else reduction
    while _is_square(value):
        passed.add(value)
        value = _operands(value)[0]
    if op_name(value) == "aten.sub" and _operands(value):
        centred = _operands(value)[0]
        way = set(_centred(centred))
        if value in way:
            passed |= way
            return centred
    return value


def _centred(source: fx.Node) -> Iterator[fx.Node]:
    """Distances of a value from its mean, with what leads to the mean."""
    for user in source.users:
        operands = _operands(user) if op_name(user) == "aten.sub" else []
        if len(operands) == 2 and operands[0] is source:
            way = {operands[1]}
            ends = [operands[1]] if op_name(operands[1]) in _REDUCTIONS else _ends(operands[1], way)
            if ends and all(op_name(end) in _REDUCTIONS and _operands(end) == [source] for end in ends):
                yield user
                yield from way


def _divisions(root: fx.Node, inner: set[fx.Node]) -> list[fx.Node]:
    """The calls that divide by a statistic."""
    found = []
    for user in root.users:
        if user.op != "call_function":
            continue
        name = op_name(user)
        if name in ("aten.div", "aten.mul") and len(_operands(user)) == 2:
            found.append(user)
        elif len(_operands(user)) == 1 and (has_trait(user, Trait.ELEMENTWISE) or name in _SHAPES):
            found += _divisions(user, inner)
    return found


def _path(root: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The calls from a root to the division by it."""
    for operand in _operands(last):
        way: list[fx.Node] = []
        each = operand
        while each is not root and len(_operands(each)) == 1:
            way.append(each)
            each = _operands(each)[0]
        if each is root:
            return way
    return []


def _softmax(division: fx.Node) -> list[fx.Node]:
    operands = _operands(division)
    if len(operands) != 2:
        return []
    exponential, total = operands
    if op_name(exponential) == "aten.exp" and op_name(total) == "aten.sum" and _operands(total) == [exponential]:
        ahead = [each for each in _operands(exponential) if op_name(each) == "aten.sub"]
        return [division, exponential, total, *ahead]
    return []


def _is_square(node: fx.Node) -> bool:
    name, operands = op_name(node), _operands(node)
    return len(operands) == 1 and (name in ("aten.square", "aten.mul", "aten.abs") or _is_power(node, (2,)))


def _is_power(node: fx.Node, exponents: tuple[float, ...]) -> bool:
    return op_name(node) == "aten.pow" and argument(node, "exponent") in exponents


def _operands(node: fx.Node) -> list[fx.Node]:
    """The distinct calls and inputs that a call reads, weights left out."""
    return [each for each in node.all_input_nodes if each.op in ("call_function", "placeholder")]
