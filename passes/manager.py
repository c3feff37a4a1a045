"""Runs passes, and trusts none: each result is hashed, verified and compared before it is taken."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from shave.ir.errors import PassError, PipelineError, SignatureError
from shave.ir.program import Program
from shave.passes.base import Context, Pass, Progress
from shave.passes.check import OutputCheck
from shave.passes.instruments import Instrument, Step
from shave.passes.pipeline import as_passes, to_text
from shave.passes.probe import probe_inputs
from shave.passes.problems import Oracle
from shave.passes.report import PassReport, Report
from shave.passes.reproducer import write_reproducer
from shave.passes.stages import Stage, check_stages, is_beyond, stage_of

_log = logging.getLogger(__name__)


class PassManager:
    """A pipeline, ready to run.

        smaller = PassManager("simplify, prune-channels{ratio=0.5}").run(program, calibration=batches)

    Args:
        passes: Pipeline text, a pass, or a list of both.
        instruments: Watch the run; see :mod:`shave.passes.instruments`.
        verify: After each pass, ``cheap`` checks the rules of the representation, ``full`` also infers all shapes anew
            and holds the pass to its own report; None checks nothing.
        check: Whether to run the program on one batch after each pass that changed it: exact passes must keep the
            outputs, and the drift of lossy ones is recorded.
        reproducers: Folder in which a failure writes what is needed to replay it; by default that named by the
            environment variable ``SHAVE_REPRODUCERS``, else the current folder.
        reproduce: Whether to write it at all.

    Raises:
        PipelineError: The text is wrong.
    """

    def __init__(
        self,
        passes: str | Pass | Iterable[str | Pass],
        *,
        instruments: Sequence[Instrument] = (),
        verify: Literal["cheap", "full"] | None = "cheap",
        check: bool = True,
        reproducers: str | Path | None = None,
        reproduce: bool = True,
    ) -> None:
        if verify not in ("cheap", "full", None):
            raise ValueError(f"verify={verify!r}; it is 'cheap', 'full' or None")
        self.passes = as_passes(passes)
        self.instruments = tuple(instruments)
        self.verify: Literal["cheap", "full"] | None = verify
        self.check = check
        self.reproducers = reproducers
        self.reproduce = reproduce

    def __str__(self) -> str:
        return to_text(self.passes)

    def run(
        self,
        program: Program,
        *,
        calibration: Iterable[Any] | None = None,
        evaluate: Callable[[Program], float] | None = None,
        target: Any = None,
        trainer: Callable[[Program], None] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        oracle: Oracle | None = None,
        reference: Program | None = None,
    ) -> Program:
        """Run the passes on a clone of the program; the one given stays as it is, whatever happens.

        Args:
            program: What to rewrite.
            calibration: Input tuples; see :class:`shave.passes.base.Context`, as for the next four.
            evaluate: Quality of a program, larger is better.
            target: What the hardware can do.
            trainer: Trains a program's weights in place.
            seed: Equal seeds give equal results.
            progress: Called as ``progress(what, done, total)``.
            oracle: Tells how long operators take on the target.
            reference: The float program that a quantized one was made from.

        Returns:
            The new program; its ``report`` has one more entry for each pass.

        Raises:
            PipelineError: The passes do not fit the program or each other, or lack what they need.
            SignatureError: The calibration data does not fit the program.
            PassError: A pass failed; a reproducer was written, and the message tells how to replay it.
        """
        stages = check_stages(self.passes, stage_of(program))
        if isinstance(calibration, Iterator):  # several passes may want to go through it
            calibration = list(calibration)
        context = Context(calibration, evaluate, target, trainer, seed, progress, oracle, reference)
        current = program.clone()
        for instrument in self.instruments:
            instrument.before_pipeline(current, self.passes, context)
        self._verify(current)
        digest = current.structural_hash()
        outputs = self._start_check(current, context)
        for step, stage in zip(self._steps(), stages[1:], strict=True):
            if step.instance.ensures is Stage.QUANTIZED and context.reference is None:
                context = replace(context, reference=current)
            for instrument in self.instruments:
                instrument.before_pass(current, step)
            try:
                current, report, digest = self._step(current, step, stage, context, digest, outputs)
            except Exception as error:
                self._fail(current, step, context, error)
            _log.info("%s", report)
            for instrument in reversed(self.instruments):
                instrument.after_pass(current, step, report)
        for instrument in reversed(self.instruments):
            instrument.after_pipeline(current)
        return current

    def _steps(self) -> list[Step]:
        return [Step(position, len(self.passes), instance) for position, instance in enumerate(self.passes, 1)]

    def _step(
        self,
        before: Program,
        step: Step,
        stage: Stage,
        context: Context,
        digest: str,
        outputs: OutputCheck | None,
    ) -> tuple[Program, PassReport, str]:
        """Run one pass on a clone; return what it made, its report, and the new digest."""
        instance = step.instance
        seconds: dict[str, float] = {}
        if context.progress is not None:
            context.progress(str(instance), step.position - 1, step.total)
        with _timed(seconds, "clone"):
            program = before.clone()
        with _timed(seconds, "apply"):
            report = instance.apply(program, context)
        if not isinstance(report, Report):
            raise TypeError(f"{type(instance).__name__}.apply returned a {type(report).__name__}, not a Report")
        with _timed(seconds, "verify"):
            self._verify(program)
            if is_beyond(reached := stage_of(program), stage):
                raise PassError(f"{instance.name} left a {reached} program, but declares {stage}")
        with _timed(seconds, "hash"):
            after = program.structural_hash()
        drift = {}
        if after != digest and outputs is not None:
            with _timed(seconds, "check"):
                drift = outputs.after(instance, program)
        done = PassReport(
            name=instance.name,
            text=str(instance),
            changed=after != digest,
            entries=tuple(report.entries),
            metrics=dict(report.metrics),
            drift=drift,
            seconds=seconds,
        )
        if self.verify == "full" and done.changed != bool(done.applied):
            what = "changed the program" if done.changed else "left the program as it was"
            raise PassError(f"{instance.name} {what}, but reports {len(done.applied)} nodes as applied")
        if context.progress is not None:
            context.progress(str(instance), step.position, step.total)
        program.report = (*before.report, done)
        return program, done, after

    def _verify(self, program: Program) -> None:
        if self.verify is not None:
            program.verify(full=self.verify == "full")

    def _start_check(self, program: Program, context: Context) -> OutputCheck | None:
        if not self.check or not self.passes:
            return None
        inputs = probe_inputs(program, context.calibration, context.seed)
        try:
            return OutputCheck(program, inputs, context.seed)
        except Exception as error:
            if context.calibration is not None:
                raise
            # Random inputs are not for every program: it may assert on its data, or index by it.
            _log.warning("passes go unchecked: the program cannot run on random inputs (%s); give calibration", error)
            return None

    def _fail(self, program: Program, step: Step, context: Context, error: Exception) -> None:
        """Tell the instruments, write a reproducer, and raise."""
        for instrument in reversed(self.instruments):
            instrument.on_failure(program, step, error)
        if isinstance(error, (PipelineError, SignatureError)):
            raise error  # The caller's mistake: there is nothing in the pass to reproduce.
        kind = "" if isinstance(error, PassError) else f"{type(error).__name__}: "
        message = f"{step} failed: {kind}{error}"
        if not self.reproduce:
            raise PassError(message) from error
        try:
            folder = write_reproducer(
                program, step.instance, context, error, verify=self.verify, parent=self.reproducers
            )
        except Exception as trouble:  # the error of the pass matters more
            raise PassError(f"{message}\nNo reproducer could be written: {trouble}") from error
        raise PassError(f"{message}\nReplay it by: shave replay {folder}", folder) from error


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
