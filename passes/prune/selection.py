"""Which groups of a program shall be cut, in the words of its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.prune.groups import Group
from shave.passes.prune.roles import Role
from shave.passes.scope import select

Attention = Literal["heads", "dims"]

_UNKNOWN = "has no axis map"


def makers(group: Group) -> list[fx.Node]:
    """The calls that make the channels of a group: what a scope can name it by."""
    return list(dict.fromkeys(each.reader for each in group.slices if each.role is Role.PRODUCES)) or [
        group.slices[0].reader
    ]


def refusals(
    program: Program,
    groups: Sequence[Group],
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    attention: Attention = "heads",
) -> dict[str, str]:
    """Why each group is not to be cut, by its name; empty for those that are.

    A scope names a group if it matches a call that makes some of its channels.

    Args:
        program: Whose groups they are.
        groups: All of them.
        only: Scopes to cut; empty for all.
        skip: Scopes to leave whole; these win.
        attention: Which of heads and their dims is cut: both would compound.

    Raises:
        PipelineError: A scope matches nothing.
    """
    candidates = list(dict.fromkeys(node for group in groups for node in makers(group)))
    wanted = set(select(program, candidates, include=only))
    unwanted = {node for entry in skip for node in select(program, candidates, include=(entry,))}
    found: dict[str, str] = {}
    for group in groups:
        nodes = set(makers(group))
        if group.reason:
            found[group.name] = group.reason
        elif nodes & unwanted:
            found[group.name] = "it is to be skipped"
        elif not nodes & wanted:
            found[group.name] = "it is not among those to cut"
        else:
            found[group.name] = ""
    first = "heads" if attention == "heads" else "head dims"
    order = sorted(groups, key=lambda group: (group.kind != first, group.kind != "channels"))  # stable
    cut: set[str] = set()
    for group in order:
        if found[group.name]:
            continue
        nested = [each for each in group.factors if each in cut]
        if nested:
            found[group.name] = f"its {group.kind} multiply with {nested[0]}, which is cut"
        else:
            cut.add(group.name)
    return found


def ratios(program: Program, groups: Sequence[Group], by_scope: Mapping[str, float]) -> dict[str, float]:
    """The ratio of each group: that of the last scope that matches it, else 0.

    Raises:
        PipelineError: A scope matches nothing.
    """
    candidates = list(dict.fromkeys(node for group in groups for node in makers(group)))
    found = dict.fromkeys((group.name for group in groups), 0.0)
    for entry, ratio in by_scope.items():
        matched = set(select(program, candidates, include=(entry,)))
        found.update({group.name: ratio for group in groups if matched & set(makers(group))})
    return found


def refuse_unknown(groups: Sequence[Group]) -> None:
    """Fail where an operator that is not known keeps a group from being cut.

    Raises:
        PipelineError: Names group, operator and node.
    """
    for group in groups:
        if _UNKNOWN in group.reason:
            raise PipelineError(
                f"{group.name} cannot be cut: {group.reason}; leave out strict to cut the rest, or add it to ir/axes"
            )
