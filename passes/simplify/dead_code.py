"""Drop what nothing reads."""

from __future__ import annotations

from dataclasses import dataclass

from shave.ir.program import Program
from shave.ir.rewrite import is_impure
from shave.passes.base import Context, Exactness, Pass
from shave.passes.report import Report


@dataclass(frozen=True)
class DeadCode(Pass):
    """Drop calls and weights that nothing reads.

    Inputs stay, as they belong to the signature; so do calls that check data, as they do something.
    """

    name = "dead-code"
    exactness = Exactness.EXACT

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        with program.rewrite(by=self.name) as rewriter:
            for node in rewriter.sweep():
                report.applied(node, "nothing reads it")
        for node in program.calls:
            if not node.users and is_impure(node):
                report.skipped(node, "nothing reads it, but it checks its arguments")
        return report
