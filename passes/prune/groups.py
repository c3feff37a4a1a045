"""Which channels must go together: the groups of a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from torch import fx

from shave.ir.axes.analysis import Layout, analyse
from shave.ir.axes.contraction import GROUPS, HEAD_DIMS, HEADS
from shave.ir.axes.reduction import NORM_GROUPS
from shave.ir.axes.terms import Form, Term, atoms, why_fixed
from shave.ir.names import module_path, onnx_name
from shave.ir.program import Program
from shave.passes.prune.roles import Role as Role
from shave.passes.prune.roles import role_of

Index = NDArray[np.int64]
"""Positions along an axis, of shape [units, width]: row ``i`` holds those that belong to unit ``i``."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of a weight, as one call reads it, that belongs to a group.

    Attributes:
        weight: The ``get_attr`` node.
        reader: The call that the weight reaches (through calls that only reshape or scale it, if there are such).
        axis: Axis of the weight.
        index: Positions along the axis for each unit, [units, width].
        role: What the reader does with it.
    """

    weight: fx.Node
    reader: fx.Node
    axis: int
    index: Index
    role: Role


@dataclass(frozen=True, eq=False)
class Channels:
    """An axis of an activation along which units of a group lie.

    Attributes:
        node: The call that gives the activation (an element of a list has its ``getitem``).
        axis: Axis of its value.
        index: Positions along the axis for each unit, [units, width].
    """

    node: fx.Node
    axis: int
    index: Index


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that can only be cut together, from every weight and activation that holds them.

    Attributes:
        name: Unique and stable: the user's module (or ONNX node, or weight) that first produces them; where that alone
            is not unique, the kind follows (``blocks.0.attn.qkv:heads``).
        kind: ``channels``, ``heads``, ``head dims``, ``conv groups``: what a unit is.
        units: How many there are. A cut keeps at least one.
        slices: Parts of weights, in the order of their readers; one for each reader of a shared weight.
        values: Activations that hold the units, in execution order.
        reason: Why it may not be cut, naming operator and node; empty if it may.
        factors: Names of groups whose units multiply with these along some axis (heads with the dims of each head):
            cutting both compounds.
    """

    name: str
    kind: str
    units: int
    slices: tuple[Slice, ...]
    values: tuple[Channels, ...]
    reason: str = ""
    factors: tuple[str, ...] = ()


def find_groups(program: Program) -> tuple[Group, ...]:
    """Find every group of a program, those that may not be cut included.

    Returns:
        In the order in which they are first produced: the same for equal programs.
    """
    return groups_of(program, analyse(program))[0]


def groups_of(program: Program, layout: Layout) -> tuple[tuple[Group, ...], dict[str, Term]]:
    """The groups, and the atom behind each that may be cut, by name."""
    slices: dict[Term, list[Slice]] = {}
    rigid: list[Slice] = []
    order = {node: position for position, node in enumerate(program.graph.nodes)}
    for reader, weight, path in sorted(_readings(program, layout), key=lambda each: order[each[0]]):
        for axis, term in enumerate(layout.axes[weight]):
            found = layout.positions(term)
            for atom, index in found.items():
                role = role_of(reader, path, axis, atom, layout)
                slices.setdefault(atom, []).append(Slice(weight, reader, axis, index, role))
            if not found and term.size > 1 and role_of(reader, path, axis, term.root, layout) is Role.PRODUCES:
                whole = np.arange(term.size, dtype=np.int64)[:, None]
                rigid.append(Slice(weight, reader, axis, whole, Role.PRODUCES))
    values = _values(program, layout)
    factors = _factors(layout)
    firsts = [
        (next(each for each in parts if each.role is Role.PRODUCES), atom)
        for atom, parts in slices.items()
        if any(each.role is Role.PRODUCES for each in parts)
    ]
    fixed = [(each, None) for each in rigid if len(layout.axes[each.weight]) > 1]
    drafts: list[tuple[Slice, Term | None]] = sorted([*firsts, *fixed], key=lambda each: order[each[0].reader])
    names = _names([(label_of(first), _kind(atom)) for first, atom in drafts])
    named = {atom: name for (_, atom), name in zip(drafts, names, strict=True) if atom is not None}
    groups = []
    for (first, known), name in zip(drafts, names, strict=True):
        if known is None:
            reason = why_fixed(layout.axes[first.weight][first.axis])
            groups.append(Group(name, _kind(None), len(first.index), (first,), (), reason))
            continue
        held, parts = tuple(values.get(known, ())), tuple(slices[known])
        related = tuple(named[each] for each in factors.get(known, ()) if each in named)
        groups.append(Group(name, _kind(known), known.size, parts, held, factors=related))
    return tuple(groups), {name: atom for atom, name in named.items()}


def label_of(part: Slice) -> str:
    """How the user knows a layer: its module, its ONNX node, or its weight without the last part of the name."""
    weight = str(part.weight.target)
    return module_path(part.reader) or onnx_name(part.reader) or weight.rpartition(".")[0] or weight


def _kind(atom: Term | None) -> str:
    known = atom.kinds if atom is not None else ()
    return next((kind for kind in (HEADS, HEAD_DIMS, GROUPS, NORM_GROUPS) if kind in known), "channels")


def _names(wanted: Sequence[tuple[str, str]]) -> list[str]:
    """Unique names from labels and kinds."""
    labels = Counter(label for label, _ in wanted)
    taken: set[str] = set()
    names = []
    for label, kind in wanted:
        base = label if labels[label] == 1 else f"{label}:{kind}"
        name, count = base, 2
        while name in taken:
            name, count = f"{base} {count}", count + 1
        taken.add(name)
        names.append(name)
    return names


Path = tuple[fx.Node, ...]
"""A weight, and the calls that make of it, from weights alone, what a reader takes."""


def _readings(program: Program, layout: Layout) -> Iterator[tuple[fx.Node, fx.Node, Path]]:
    """Each weight with each call on data that it reaches, and the way there."""
    for weight in program.graph.find_nodes(op="get_attr"):
        if weight not in layout.axes:
            continue
        paths: list[Path] = [(weight,)]
        seen = {weight}
        while paths:
            path = paths.pop(0)
            for user in path[-1].users:
                if user.op == "call_function" and user not in layout.constant:
                    yield user, weight, path
                elif user not in seen and user.op == "call_function":
                    seen.add(user)
                    paths.append((*path, user))


def _values(program: Program, layout: Layout) -> dict[Term, list[Channels]]:
    """Activations by the atoms that they hold; axes of dynamic size are left out."""
    found: dict[Term, list[Channels]] = {}
    for node in program.calls:
        if node in layout.constant or node not in layout.axes:
            continue
        sizes = node.meta["val"].shape
        for axis, (term, size) in enumerate(zip(layout.axes[node], sizes, strict=True)):
            if isinstance(size, int):
                for atom, index in layout.positions(term).items():
                    found.setdefault(atom, []).append(Channels(node, axis, index))
    return found


def _factors(layout: Layout) -> dict[Term, dict[Term, None]]:
    """Atoms that multiply along some axis."""
    found: dict[Term, dict[Term, None]] = {}
    seen: set[Term] = set()

    def visit(term: Term) -> None:
        term = term.root
        if term in seen:
            return
        seen.add(term)
        if term.form is Form.PRODUCT:
            inside = [list(dict.fromkeys(atoms(part))) for part in term.parts]
            for one, other in permutations(inside, 2):
                for atom in one:
                    found.setdefault(atom, {}).update((each, None) for each in other if each is not atom)
        for part in term.parts:
            visit(part)

    for axes in layout.axes.values():
        for term in axes:
            visit(term)
    return found
