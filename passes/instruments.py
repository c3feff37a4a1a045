"""Instruments watch a pipeline while it runs: they see every program, and change none."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from shave.ir.cost import Cost
from shave.ir.errors import PipelineError
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.base import Context, Pass
from shave.passes.compare import CompareError, Difference, compare
from shave.passes.probe import probe_inputs
from shave.passes.report import PassReport

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Step:
    """One place in a pipeline.

    Attributes:
        position: 1 for the first pass.
        total: Number of passes.
        instance: The pass.
    """

    position: int
    total: int
    instance: Pass

    def __str__(self) -> str:
        return f"pass {self.position} of {self.total}, {self.instance}"


class Instrument:
    """The hooks; each does nothing unless overridden.

    ``before_`` hooks run in the order in which the instruments were given, the others in reverse order, so that an
    instrument encloses those behind it.
    """

    def before_pipeline(self, program: Program, passes: Sequence[Pass], context: Context) -> None:
        """Called once with the program given."""

    def before_pass(self, program: Program, step: Step) -> None:
        """Called with the program that the pass will be given."""

    def after_pass(self, program: Program, step: Step, report: PassReport) -> None:
        """Called when the pass has been verified and checked; ``report`` has its timings."""

    def after_pipeline(self, program: Program) -> None:
        """Called once with the result."""

    def on_failure(self, program: Program, step: Step, error: Exception) -> None:
        """Called in place of ``after_pass`` and ``after_pipeline``, with the program from before the failing pass."""


@dataclass(frozen=True)
class TimingRow:
    """One row of a timing tree.

    Attributes:
        depth: 0 for the pipeline, 1 for its start and each pass, 2 for a phase of a pass.
        label: The pass or phase.
        seconds: Wall-clock time, what lies below included.
    """

    depth: int
    label: str
    seconds: float


class Timing(Instrument):
    """Collects the time of each pass by phase; the verifier, the hash and the check of outputs have their own rows.

    The row of the pipeline is wall-clock time from end to end, so it also holds what other instruments spend.
    """

    def __init__(self) -> None:
        self.rows: list[TimingRow] = []

    def before_pipeline(self, program: Program, passes: Sequence[Pass], context: Context) -> None:
        """Start anew."""
        self._start = time.perf_counter()
        self.rows = [TimingRow(0, "pipeline", 0.0)]

    def before_pass(self, program: Program, step: Step) -> None:
        """Add what was spent on the program given: verifying, hashing and running it."""
        if step.position == 1:
            self.rows.append(TimingRow(1, "start", time.perf_counter() - self._start))

    def after_pass(self, program: Program, step: Step, report: PassReport) -> None:
        """Add a pass and its phases."""
        self.rows.append(TimingRow(1, report.text, sum(report.seconds.values())))
        self.rows += [TimingRow(2, phase, spent) for phase, spent in report.seconds.items()]
        self.rows[0] = TimingRow(0, "pipeline", time.perf_counter() - self._start)

    def __str__(self) -> str:
        total = self.rows[0].seconds if self.rows else 0.0
        return "\n".join(
            f"{1000 * row.seconds:10.1f} ms {100 * row.seconds / total if total else 0:5.1f} %  "
            f"{'  ' * row.depth}{row.label}"
            for row in self.rows
        )


class PrintAfterChange(Instrument):
    """Prints the program as text after each pass that changed it.

    Args:
        stream: Where to; by default standard error.
        only: Names of the passes after which to print; by default all.
    """

    def __init__(self, stream: TextIO | None = None, only: Sequence[str] = ()) -> None:
        self._stream = stream
        self._only = only

    def after_pass(self, program: Program, step: Step, report: PassReport) -> None:
        """Print, if there is something new."""
        if report.changed and (not self._only or report.name in self._only):
            (self._stream or sys.stderr).write(f"# after {step}\n{program}\n")


class Dump(Instrument):
    """Writes the program given and what each pass made of it into a folder, as text and as ``.pt2`` that loads again.

    Files are numbered (``003_fold-batchnorm.txt``); a number that is missing is a pass that changed nothing. What an
    earlier run left in the folder is removed.

    Args:
        folder: Is made if it does not exist.

    Raises:
        PipelineError: The folder holds files that no dump wrote.
    """

    _OWN = re.compile(r"\d{3}_[a-z0-9-]+\.(txt|pt2)")

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def before_pipeline(self, program: Program, passes: Sequence[Pass], context: Context) -> None:
        """Clear the folder of an earlier dump, and write the program given."""
        self.folder.mkdir(parents=True, exist_ok=True)
        present = sorted(self.folder.iterdir())
        if foreign := [path.name for path in present if not self._OWN.fullmatch(path.name) or not path.is_file()]:
            raise PipelineError(f"{self.folder} holds {foreign[0]}, which is no dump; give an empty or a new folder")
        for path in present:
            path.unlink()
        self._write(program, 0, "input")

    def after_pass(self, program: Program, step: Step, report: PassReport) -> None:
        """Write what the pass changed."""
        if report.changed:
            self._write(program, step.position, report.name)

    def _write(self, program: Program, position: int, name: str) -> None:
        stem = self.folder / f"{position:03}_{name}"
        stem.with_suffix(".txt").write_text(f"{program}\n", encoding="utf-8")
        program.save(stem.with_suffix(".pt2"))


class Numerics(Instrument):
    """Measures after each pass how far the outputs are from those of the program given.

    Args:
        inputs: Input tuples to measure on; by default the first batch of calibration data, or random inputs.

    Attributes:
        rows: For each pass that changed something, its text and the differences by output name (None if the shapes of
            outputs changed).
    """

    def __init__(self, inputs: Sequence[tuple[torch.Tensor, ...]] | None = None) -> None:
        self._given = inputs
        self.rows: list[tuple[str, dict[str, Difference] | None]] = []

    def before_pipeline(self, program: Program, passes: Sequence[Pass], context: Context) -> None:
        """Keep the program given, and inputs for it."""
        self.rows = []
        self._reference = program
        self._inputs = self._given or [probe_inputs(program, context.calibration, context.seed)]

    def after_pass(self, program: Program, step: Step, report: PassReport) -> None:
        """Compare with the program given."""
        if not report.changed:
            return
        names = [spec.name for spec in program.signature.outputs]
        try:
            self.rows.append((report.text, compare(self._reference, program, self._inputs, names)))
        except CompareError:
            self.rows.append((report.text, None))

    def __str__(self) -> str:
        lines = []
        for text, differences in self.rows:
            lines.append(text)
            if differences is None:
                lines.append("  the outputs have other shapes")
            else:
                lines += [f"  {name}: {found}" for name, found in differences.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Count:
    """Size of a program at one point.

    Attributes:
        nodes: Number of calls by operator.
        cost: Parameters, multiply-accumulates, bytes.
    """

    nodes: dict[str, int]
    cost: Cost


class Statistics(Instrument):
    """Counts nodes by operator, parameters and multiply-accumulates before the pipeline and after each pass.

    Attributes:
        rows: The program given as ``input``, then each pass with what it left.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[str, Count]] = []

    def before_pipeline(self, program: Program, passes: Sequence[Pass], context: Context) -> None:
        """Count the program given."""
        self.rows = [("input", _count(program))]

    def after_pass(self, program: Program, step: Step, report: PassReport) -> None:
        """Count again, if something changed."""
        self.rows.append((report.text, _count(program) if report.changed else self.rows[-1][1]))

    def __str__(self) -> str:
        lines = []
        for text, count in self.rows:
            total = sum(count.nodes.values())
            lines.append(f"{text}: {total} nodes, {count.cost.parameters:,} parameters, {count.cost.macs:,} MACs")
        before, after = self.rows[0][1].nodes, self.rows[-1][1].nodes
        lines += [
            f"  {name}: {before.get(name, 0)} -> {after.get(name, 0)}"
            for name in sorted(before | after)
            if before.get(name, 0) != after.get(name, 0)
        ]
        return "\n".join(lines)


def _count(program: Program) -> Count:
    nodes: dict[str, int] = {}
    for node in program.calls:
        nodes[op_name(node)] = nodes.get(op_name(node), 0) + 1
    return Count(nodes, program.cost())
