"""What the passes did: for every node that came into question, applied, or skipped with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx

from shave.ir.names import names_of
from shave.ir.ops import op_name
from shave.passes.compare import Difference
from shave.passes.scope import ancestors, labels_of

Verdict = Literal["applied", "skipped"]


@dataclass(frozen=True)
class Entry:
    """One node's fate in one pass.

    Attributes:
        verdict: ``applied`` or ``skipped``.
        node: Name of the node in the graph.
        names: All names under which a user may know it: module path, ONNX node, weight.
        op: Its operator (``aten.conv2d``), or ``weight`` or ``input``; empty if the entry is about no node.
        text: What was done, or why not.
        labels: Everything that an entry of a scope can match the node by.
    """

    verdict: Verdict
    node: str
    names: tuple[str, ...]
    op: str
    text: str
    labels: frozenset[str] = field(default=frozenset(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Give plain data."""
        return {
            "verdict": self.verdict,
            "node": self.node,
            "names": list(self.names),
            "op": self.op,
            "text": self.text,
        }


class Report:
    """Filled by a pass while it works.

    Attributes:
        entries: In the order in which they were recorded.
        metrics: Figures of the pass's own, by name.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.metrics: dict[str, float] = {}

    def applied(self, node: fx.Node | str, what: str) -> None:
        """Record what was done to a node (or, by name, to something that is no node)."""
        self.entries.append(_entry("applied", node, what))

    def skipped(self, node: fx.Node | str, reason: str) -> None:
        """Record why a node that came into question was left as it is."""
        self.entries.append(_entry("skipped", node, reason))


@dataclass(frozen=True)
class PassReport:
    """What one pass of a run did; ``program.report`` holds one for each pass, oldest first.

    Attributes:
        name: The pass.
        text: The pass with its options, as pipeline text.
        changed: Whether graph or weights differ from before, by structural hash.
        entries: Every node that came into question.
        metrics: Figures of the pass's own.
        drift: By output name, how the outputs moved from before the pass to behind it on the probe inputs; empty where
            nothing changed or nothing was measured.
        seconds: Time by phase: ``clone``, ``apply``, ``verify``, ``hash``, ``check``.
    """

    name: str
    text: str
    changed: bool
    entries: tuple[Entry, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    drift: Mapping[str, Difference] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def applied(self) -> tuple[Entry, ...]:
        """What was done."""
        return tuple(entry for entry in self.entries if entry.verdict == "applied")

    @property
    def skipped(self) -> tuple[Entry, ...]:
        """What was left, with the reasons."""
        return tuple(entry for entry in self.entries if entry.verdict == "skipped")

    def to_json(self) -> dict[str, Any]:
        """Give plain data."""
        return {
            "name": self.name,
            "text": self.text,
            "changed": self.changed,
            "entries": [entry.to_json() for entry in self.entries],
            "metrics": dict(self.metrics),
            "drift": {name: difference.to_json() for name, difference in self.drift.items()},
            "seconds": dict(self.seconds),
        }

    def __str__(self) -> str:
        state = "changed" if self.changed else "unchanged"
        return f"{self.text}: {len(self.applied)} applied, {len(self.skipped)} skipped, {state}"


def _entry(verdict: Verdict, node: fx.Node | str, text: str) -> Entry:
    if isinstance(node, str):
        return Entry(verdict, node, (node,), "", text, frozenset(ancestors(node)))
    op = {"get_attr": "weight", "placeholder": "input", "output": "output"}.get(node.op) or op_name(node)
    return Entry(verdict, node.name, tuple(names_of(node)), op, text, labels_of(node))
