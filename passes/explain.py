"""Tells why each pass changed a node, or left it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shave.ir.errors import PipelineError
from shave.passes.report import Entry, PassReport
from shave.passes.scope import matches
from shave.passes.suggest import nearest


@dataclass(frozen=True)
class Explanation:
    """What one pass did about a node.

    Attributes:
        text: The pass with its options.
        entries: What it recorded about the node; empty if the node did not come into question.
    """

    text: str
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        if not self.entries:
            return f"{self.text}: did not come into question"
        lines = [f"{self.text}: {entry.verdict} {entry.node} ({entry.op}): {entry.text}" for entry in self.entries]
        return "\n".join(lines)


def explain(reports: Sequence[PassReport], query: str) -> list[Explanation]:
    """Look up a node in the reports of a run (``program.report``).

    Args:
        reports: One for each pass.
        query: What an entry of a scope can be (see :mod:`shave.passes.scope`): a name, a kind, or ``re:`` and a regular
            expression.

    Returns:
        One explanation for each pass, in the order in which they ran.

    Raises:
        PipelineError: No pass recorded anything about such a node; offers the nearest names.
    """
    found = [
        Explanation(report.text, tuple(entry for entry in report.entries if matches(query, entry.labels)))
        for report in reports
    ]
    if not any(explanation.entries for explanation in found):
        known = {label for report in reports for entry in report.entries for label in entry.labels}
        raise PipelineError(f"no pass recorded anything about {query!r}{nearest(query, known)}")
    return found
