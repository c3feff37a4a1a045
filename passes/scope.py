r"""Which nodes a pass shall work on, in the words of its user.

An entry of a scope is one of

- a name: of a module (``features.3``, and with it all that lies below), an ONNX node (``/features/3/Conv``), a weight
  (``features.3.weight``: whatever reads it), or a node of the graph (``conv2d_4``);
- a kind: an operator (``conv2d``, ``aten.conv2d``), an ONNX operator (``Conv``), a class of modules (``Conv2d``,
  ``BasicBlock``);
- ``re:`` and a regular expression that must match one of these as a whole (``re:features\.[0-3]``).

An entry that matches nothing is an error: a typo must not pass for a choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.names import names_of, onnx_op
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.suggest import nearest

T = TypeVar("T")

_REGEX = "re:"


def select(
    program: Program,
    candidates: Iterable[fx.Node],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[fx.Node]:
    """Pick those candidates that a scope names.

    Args:
        program: Whose nodes they are.
        candidates: The nodes that the pass could work on.
        include: Entries of which a node must match one; empty means every candidate.
        exclude: Entries of which a node must match none.

    Returns:
        In the order of the candidates.

    Raises:
        PipelineError: An entry matches no node (the nearest names are offered), an entry to include matches no
            candidate, or a regular expression is malformed.
    """
    candidates = list(candidates)
    labels = {node: labels_of(node) for node in program.graph.nodes if node.op != "output"}
    matched = {entry: {node for node in labels if matches(entry, labels[node])} for entry in (*include, *exclude)}
    for entry, nodes in matched.items():
        if not nodes:
            known = {label for all_labels in labels.values() for label in all_labels}
            raise PipelineError(f"the scope {entry!r} matches nothing in this program{nearest(entry, known)}")
    for entry in include:
        if matched[entry].isdisjoint(candidates):
            found = next(iter(matched[entry]))
            kinds = sorted({_kind(node) for node in candidates})
            raise PipelineError(
                f"the scope {entry!r} matches {_kind(found)} {found.name}, but no node that the pass could work on "
                f"({', '.join(kinds) or 'there is none in this program'})"
            )
    included = set().union(*(matched[entry] for entry in include)) if include else set(candidates)
    excluded = set().union(*(matched[entry] for entry in exclude))
    return [node for node in candidates if node in included and node not in excluded]


def values_of(
    program: Program, candidates: Iterable[fx.Node], default: T, by_scope: Mapping[str, T]
) -> dict[fx.Node, T]:
    """A value for each candidate: that of the last entry of a scope that matches it, or else the default.

    Raises:
        PipelineError: As in :func:`select`.
    """
    found = dict.fromkeys(candidates, default)
    for entry, value in by_scope.items():
        found.update(dict.fromkeys(select(program, found, (entry,)), value))
    return found


def matches(entry: str, labels: Iterable[str]) -> bool:
    """Whether an entry of a scope matches one of the labels.

    Raises:
        PipelineError: The regular expression is malformed.
    """
    if not entry.startswith(_REGEX):
        return entry in labels
    try:
        pattern = re.compile(entry.removeprefix(_REGEX))
    except re.error as error:
        raise PipelineError(f"the scope {entry!r} is no regular expression: {error}") from error
    return any(pattern.fullmatch(label) for label in labels)


def labels_of(node: fx.Node) -> frozenset[str]:
    """Everything that an entry of a scope can match a node by."""
    labels = {label for name in names_of(node) for label in ancestors(name)}
    for path, kind in (node.meta.get("nn_module_stack") or {}).values():
        if not path.startswith("_empty_nn_module_stack"):
            labels |= {*ancestors(path), (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]}
    if node.op == "call_function":
        labels |= {op_name(node), op_name(node).rpartition(".")[2], onnx_op(node)}
        # Files without module names, and nodes that a pass made, are known by their weights.
        for used in node.all_input_nodes:
            if used.op == "get_attr":
                labels.update(ancestors(str(used.target)))
    return frozenset(labels - {""})


def ancestors(name: str) -> Iterator[str]:
    """A dotted (or, in ONNX, slashed) name and all that it lies in: ``a.b.c``, ``a.b``, ``a``."""
    while name:
        yield name
        name = name[: max(name.rfind("."), name.rfind("/"), 0)]


def _kind(node: fx.Node) -> str:
    return op_name(node) if node.op == "call_function" else {"get_attr": "weight", "placeholder": "input"}[node.op]
