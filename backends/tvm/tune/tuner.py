"""``shave.tune``: which ways and schedules make a program faster on this machine than estimates and defaults do."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shave.backends.manifest import Platform
from shave.backends.runtime import check_threads
from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.oracle import cost_oracle, measured_oracle
from shave.backends.tvm.tune.tuning import Tuning
from shave.ir.errors import ArtifactError, TargetError

if TYPE_CHECKING:
    from shave.backends.tvm.tune.database import Journal
    from shave.backends.tvm.tune.meter import Meter
    from shave.ir.program import Program
    from shave.passes.base import Pass
    from shave.passes.manager import PassManager
    from shave.passes.problems import Oracle, Problem

_FOR_CONFIRMING = 0.2
"""Share of the time that is kept for the second measurements."""
_WHOLE_SECONDS = 2.0


def tune(
    program: Program,
    target: str | Target = "cpu",
    *,
    minutes: float,
    database: str | Path,
    passes: str | Pass | Iterable[str | Pass] | None = "exact",
    calibration: Iterable[Any] | None = None,
    threads: int | None = None,
    progress: Callable[[Tuning], None] = lambda tuning: None,
) -> Tuning:
    """Measure how a program is computed fastest on this machine, and keep what is found in a database.

    Convolutions are computed in all ways that may be fastest, and kernels by other schedules, inside of the program.
    Give the file to :func:`shave.compile` as ``tuned``. What the file already holds is not measured again. Ctrl-C ends
    the search early; every measurement is in the file as soon as it is made.

    Args:
        program: The program, as it would be given to :func:`shave.compile`.
        target: What to tune for: this machine, or a lower target that it can run.
        minutes: Time to spend. The search ends earlier when nothing is left to measure.
        database: The file, which is made if it is not there.
        passes: What to run first, as for :func:`shave.compile`.
        calibration: Input tuples for passes that need data; the program is measured on the first, else on random
            numbers.
        threads: Threads of a call; by default the cores of the target.
        progress: Called after each measurement.

    Returns:
        What was found.

    Raises:
        TargetError: This machine cannot run code for the target.
        ReadError: The database cannot be read.
        WriteError: The database cannot be written.
        UnsupportedError: The program holds something that cannot be compiled for the target.
        ValueError: ``minutes`` is not positive, or ``threads`` out of range.
    """
    started = time.monotonic()
    target = resolve(target) if isinstance(target, str) else target
    try:
        Platform.of(target).check_host()
    except ArtifactError as error:
        raise TargetError(f"target {target.name} cannot be tuned on this machine: {error}") from error
    if not minutes > 0:
        raise ValueError(f"minutes must be positive, not {minutes}")
    if threads is not None:
        check_threads(threads)
        target = replace(target, cores=threads)

    from shave.backends.tvm.tune.database import Journal
    from shave.backends.tvm.worker import workers
    from shave.passes.manager import PassManager

    journal = Journal(Path(database))
    workers.start()
    tuning = Tuning()

    def tell() -> None:
        tuning.elapsed = time.monotonic() - started
        progress(tuning)

    if isinstance(calibration, Iterator):  # the passes run several times
        calibration = list(calibration)
    manager = PassManager([] if passes is None else passes)
    run = _Run(program, target, manager, calibration, journal, tuning, tell)
    try:
        run(started + 60 * minutes * (1 - _FOR_CONFIRMING))
    except KeyboardInterrupt:
        tuning.interrupted = True
    tuning.elapsed = time.monotonic() - started
    return tuning


class _Run:
    """The parts of one call of :func:`tune`."""

    def __init__(
        self,
        program: Program,
        target: Target,
        passes: PassManager,
        calibration: Iterable[Any] | None,
        journal: Journal,
        tuning: Tuning,
        tell: Callable[[], None],
    ) -> None:
        self._program = program
        self._target = target
        self._passes = passes
        self._calibration = calibration
        self._journal = journal
        self._tuning = tuning
        self._tell = tell
        estimate = cost_oracle(target)
        assert estimate is not None  # this machine has none of the other targets
        self._estimate: Oracle = estimate

    def __call__(self, deadline: float) -> None:
        """Compare ways, search schedules until the deadline, and measure the whole."""
        from shave.backends.tvm.lower import lower
        from shave.backends.tvm.tune.meter import Meter

        asked: list[Problem] = []

        def note(problem: Problem) -> float | None:
            asked.append(problem)
            return self._estimate(problem)

        default = self._optimised(note)
        lowered = lower(default, self._target)
        if default.dim_names or lowered.plan is None:
            self._tuning.skipped = sorted({call.kernel.name for call in lowered.kernels if call.kernel is not None})
            return
        with tempfile.TemporaryDirectory(prefix="shave-tune-") as name:
            folder = Path(name)
            meter = Meter(self._target.cores, self._inputs(folder))
            try:
                self._compare_ways(asked, meter, folder)
                self._search(meter, folder, deadline)
                self._whole(default, meter, folder)
            finally:
                meter.stop()

    def _optimised(self, oracle: Oracle | None) -> Program:
        return self._passes.run(self._program, target=self._target, oracle=oracle, calibration=self._calibration)

    def _known(self) -> Program:
        """The program as it is compiled by what the database holds now."""
        return self._optimised(measured_oracle(self._journal.database, self._target))

    def _inputs(self, folder: Path) -> Path:
        from shave.passes.probe import probe_inputs

        tensors = probe_inputs(self._program, self._calibration)
        path = folder / "inputs.npz"
        np.savez(path, allow_pickle=False, **{f"{k:06}": tensor.numpy() for k, tensor in enumerate(tensors)})
        return path

    def _compare_ways(self, asked: list[Problem], meter: Meter, folder: Path) -> None:
        from shave.backends.tvm.tune.methods import compare, contests

        database = self._journal.database
        listed = contests(asked, self._estimate, database, self._target)
        if not listed:
            return
        for found in compare(self._optimised, listed, self._estimate, database, meter, self._target, folder):
            self._journal.keep(found)
            self._tuning.comparisons.append(found)
        self._tell()

    def _search(self, meter: Meter, folder: Path, deadline: float) -> None:
        from shave.backends.tvm.tune.network import Network
        from shave.backends.tvm.tune.search import Search

        network = Network(self._known(), self._target, folder)
        Search(network, meter, self._journal, self._target.cores, self._tuning, self._tell).run(deadline)

    def _whole(self, default: Program, meter: Meter, folder: Path) -> None:
        """Whether the program is faster in the end."""
        from shave.backends.tvm.tune.database import Tuned
        from shave.backends.tvm.tune.meter import Variants
        from shave.backends.tvm.tune.network import Network
        from shave.backends.tvm.tune.records import Outcome, machine_of, program_key
        from shave.backends.tvm.tune.samples import seconds_of_both

        threads = self._target.cores
        schedules = Tuned(self._journal.database, threads)
        program = self._known()
        tuned = Network(program, self._target, folder, schedules)
        if not schedules.decided and program.structural_hash() == default.structural_hash():
            return
        programs = [Variants(Network(default, self._target, folder).artifact), Variants(tuned.artifact)]
        before, after = seconds_of_both(*meter.whole(programs, _WHOLE_SECONDS))
        key = program_key(self._program, self._passes)
        self._tuning.outcome = Outcome(key, machine_of(self._target), threads, after, before)
        self._journal.keep(self._tuning.outcome)
        self._tell()
