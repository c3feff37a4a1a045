"""Which channels must go together: the groups of a program."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from torch import fx

from shave.ir.program import Program

Index = NDArray[np.int64]
"""Positions along an axis, of shape [units, width]: row ``i`` holds those that belong to unit ``i``."""


class Role(Enum):
    """What a weight does with the channels of a group."""

    PRODUCES = "produces"
    """Makes them: rows of a convolution or linear layer, its bias, columns of an embedding."""
    CONSUMES = "consumes"
    """Sums over them: input columns of a layer."""
    CARRIES = "carries"
    """Acts on each by itself: scale, shift and statistics of a norm, a depthwise filter, PReLU, position embedding."""


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
        units: How many there are. A cut keeps at least one (one of each class).
        slices: Parts of weights, in the order of their readers; one for each reader of a shared weight.
        values: Activations that hold the units, in execution order.
        reason: Why it may not be cut, naming operator and node; empty if it may.
        classes: A class number for each unit, [units]. As many units must be kept in each class (all zero: no such
            rule). Groups of a grouped convolution are an example.
        factors: Names of groups whose units multiply with these along some axis (heads with the dims of each head):
            cutting both compounds.
    """

    name: str
    kind: str
    units: int
    slices: tuple[Slice, ...]
    values: tuple[Channels, ...]
    reason: str = ""
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    factors: tuple[str, ...] = ()


def find_groups(program: Program) -> tuple[Group, ...]:
    """Find every group of a program, those that may not be cut included.

    Returns:
        In the order in which they are first produced: the same for equal programs.
    """
    raise NotImplementedError
