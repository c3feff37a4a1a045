"""Finds the first pass, then the first node, that breaks something."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.compare import compare
from shave.passes.instruments import Instrument, Step
from shave.passes.intermediate import NodeDifference, compare_nodes
from shave.passes.manager import PassManager
from shave.passes.probe import probe_inputs
from shave.passes.report import PassReport


@dataclass(frozen=True)
class Finding:
    """Where a pipeline breaks.

    Attributes:
        step: The pass behind which the predicate no longer holds.
        before: The program that the pass was given; the predicate holds.
        after: What the pass made of it; the predicate fails.
        nodes: Difference of every node that can be compared, in execution order.
        node: The first of them beyond the tolerance; None if there is none.
    """

    step: Step
    before: Program
    after: Program
    nodes: tuple[NodeDifference, ...]
    node: NodeDifference | None

    def __str__(self) -> str:
        if self.node is None:
            return f"{self.step} breaks it; no single node is beyond the tolerance"
        names = ", ".join(self.node.names)
        return f"{self.step} breaks it, first at {self.node.op} ({names}): {self.node.difference}"


def bisect(
    program: Program,
    passes: str | Pass | Iterable[str | Pass],
    holds: Callable[[Program], bool],
    *,
    node_tolerance: float = 1e-3,
    calibration: Any = None,
    seed: int = 0,
    **given: Any,
) -> Finding | None:
    """Run a pipeline and search it for the pass behind which a predicate fails.

    All passes run once; then the predicate is asked about as many programs as the binary logarithm of the number of
    passes that changed something. If it fails and holds by turns, one of the passes that break it is found.

    Args:
        program: Where the predicate holds.
        passes: Pipeline text, a pass, or a list of both.
        holds: The predicate; see :func:`outputs_within` for one.
        node_tolerance: Relative difference beyond which a node counts as broken.
        calibration: Input tuples for the passes; nodes are compared on the first, or on random inputs.
        seed: As for ``PassManager.run``.
        **given: What else ``PassManager.run`` takes.

    Returns:
        The finding, or None if the predicate holds behind the whole pipeline.

    Raises:
        PipelineError: The predicate fails on the program given.
        PassError: A pass fails by itself.
    """
    recorder = _Recorder()
    if calibration is not None:
        calibration = list(calibration)
    manager = PassManager(passes, instruments=[recorder], check=False, reproduce=False)
    manager.run(program, calibration=calibration, seed=seed, **given)
    states = recorder.states
    if not holds(program):
        raise PipelineError("the predicate fails on the program given already, before any pass")
    if not states or holds(states[-1][1]):
        return None
    good, bad = -1, len(states) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(states[middle][1]) else (good, middle)
    step, after = states[bad]
    before = program if good < 0 else states[good][1]
    nodes = compare_nodes(before, after, probe_inputs(program, calibration, seed))
    first = next((node for node in nodes if not node.difference.max_rel <= node_tolerance), None)
    return Finding(step, before, after, tuple(nodes), first)


def outputs_within(
    reference: Callable[..., Any], batches: Sequence[Sequence[Any]], *, max_rel: float = 1e-4
) -> Callable[[Program], bool]:
    """Make a predicate: every output is within a relative difference of the reference's on these inputs."""

    def holds(program: Program) -> bool:
        return all(found.max_rel <= max_rel for found in compare(reference, program, batches).values())

    return holds


class _Recorder(Instrument):
    """Keeps the program behind each pass that changed it; programs share their weights, so this is cheap."""

    def __init__(self) -> None:
        self.states: list[tuple[Step, Program]] = []

    def after_pass(self, program: Program, step: Step, report: PassReport) -> None:
        if report.changed:
            self.states.append((step, program))
