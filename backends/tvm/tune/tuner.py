"""The search: which kernels a program needs, and which of their candidates are faster here than the defaults.

Time goes to kernels by their share of the program's time. Candidates are built side by side on all cores; then, with
all builders at rest, each is timed in turns with the default. One that looks better is timed again, for longer, and
only that second measurement counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shave.backends.manifest import Platform
from shave.backends.runtime import check_threads
from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.oracle import cost_oracle
from shave.ir.errors import ArtifactError, CompileError, TargetError

if TYPE_CHECKING:
    from shave.backends.tvm.schedules import Argument, Kernel
    from shave.backends.tvm.tune.database import Database, Record
    from shave.ir.program import Program
    from shave.passes.base import Pass

_SCREENING_SECONDS, _CONFIRMING_SECONDS = 0.03, 0.15
_MOST_COPIES_BYTES = 256 << 20
_BATCH = 8


@dataclass
class TunedKernel:
    """One kernel of the program.

    Attributes:
        kernel: What it is.
        arguments: The tensors of a call.
        calls: How often one run of the program calls it.
        seconds: Duration of one call with the default schedule; 0 until it is measured.
        ratio: Duration with the best schedule that is confirmed, relative to the default's.
        schedule: That schedule; None for the default.
        waiting: Candidates that were not measured yet, the most promising first.
        measured: Number of candidates that were.
    """

    kernel: Kernel
    arguments: Sequence[Argument]
    calls: int
    seconds: float = 0.0
    ratio: float = 1.0
    schedule: Any = None
    waiting: list[Any] = field(default_factory=list)
    measured: int = 0


@dataclass
class Tuning:
    """How a search stands.

    Attributes:
        kernels: Those with a choice of schedules, slowest first once all are measured.
        skipped: Names of kernels that cannot be measured, since their sizes are only known at run time.
        elapsed: Seconds since the start.
        interrupted: Whether the user ended the search.
    """

    kernels: list[TunedKernel]
    skipped: list[str]
    elapsed: float = 0.0
    interrupted: bool = False

    @property
    def default_seconds(self) -> float:
        """Time of these kernels in one run of the program, with default schedules."""
        return sum(entry.calls * entry.seconds for entry in self.kernels)

    @property
    def seconds(self) -> float:
        """The same with the best schedules known."""
        return sum(entry.calls * entry.seconds * entry.ratio for entry in self.kernels)

    @property
    def measured(self) -> int:
        """Number of candidates measured so far, earlier searches included."""
        return sum(entry.measured for entry in self.kernels)

    @property
    def waiting(self) -> int:
        """Number of candidates that were not measured yet."""
        return sum(len(entry.waiting) for entry in self.kernels)


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
    """Measure schedules of the kernels that a program needs, and keep what is found in a database.

    Give the file to :func:`shave.compile` as ``tuned``. What the file already holds is not measured again. Ctrl-C ends
    the search early; every measurement is in the file as soon as it is made.

    Args:
        program: The program, as it would be given to :func:`shave.compile`.
        target: What to tune for: this machine, or a lower target that it can run.
        minutes: Time to spend. The search ends earlier when nothing is left to measure.
        database: The file, which is made if it is not there.
        passes: What to run first, as for :func:`shave.compile`.
        calibration: Input tuples for passes that need data.
        threads: Threads of a call; by default the cores of the target.
        progress: Called after each measurement.

    Returns:
        What was found, kernel by kernel.

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

    from shave.backends.tvm.tune.database import Database, create
    from shave.backends.tvm.tune.meter import Meter
    from shave.backends.tvm.worker import workers

    path = Path(database)
    create(path)
    known = Database.read(path)
    workers.start()
    threads = threads or target.cores
    target = replace(target, cores=threads)
    if passes is not None:
        from shave.passes.manager import PassManager

        oracle = cost_oracle(target)
        program = PassManager(passes).run(program, target=target, oracle=oracle, calibration=calibration)
    collected, weight_bytes = _collect(program, target)
    meter = Meter(threads, min(max(weight_bytes, 2 * target.l2_bytes), _MOST_COPIES_BYTES))
    search = _Search(collected, known, path, meter, threads, started, started + 60 * minutes, progress)
    try:
        search.run()
    except KeyboardInterrupt:
        search.tuning.interrupted = True
    finally:
        meter.stop()
    search.tuning.elapsed = time.monotonic() - started
    return search.tuning


class _Collector:
    """Notes which kernels a program asks for."""

    def __init__(self) -> None:
        self.kernels: dict[Kernel, TunedKernel] = {}

    def choose(self, kernel: Kernel, arguments: Sequence[Argument]) -> Any:
        default = kernel.family.default(kernel.shape, kernel.target)
        entry = self.kernels.setdefault(kernel, TunedKernel(kernel, arguments, 0))
        entry.calls += 1
        return default


def _collect(program: Program, target: Target) -> tuple[list[TunedKernel], int]:
    """The kernels of a program, and the bytes of its weights."""
    from shave.backends.tvm.lower import lower

    collector = _Collector()
    lowered = lower(program, target, collector)
    return list(collector.kernels.values()), sum(array.nbytes for _, array in lowered.weights)


class _Search:
    """One run of the tuner."""

    def __init__(
        self,
        kernels: list[TunedKernel],
        known: Database,
        path: Path,
        meter: Any,
        threads: int,
        started: float,
        deadline: float,
        progress: Callable[[Tuning], None],
    ) -> None:
        static = [entry for entry in kernels if _is_static(entry)]
        skipped = [entry.kernel.name for entry in kernels if not _is_static(entry)]
        self.tuning = Tuning([entry for entry in static if self._prepare(entry, known, threads)], skipped)
        self._path = path
        self._meter = meter
        self._threads = threads
        self._started = started
        self._deadline = deadline
        self._progress = progress

    @staticmethod
    def _prepare(entry: TunedKernel, known: Database, threads: int) -> bool:
        """Sort a kernel's candidates into measured and waiting; whether there is any choice."""
        from shave.backends.tvm.schedules import plain

        kernel = entry.kernel
        default = kernel.family.default(kernel.shape, kernel.target)
        candidates = [c for c in kernel.family.candidates(kernel.shape, kernel.target) if c != default]
        seen = [record.schedule for record in known.of(kernel, threads)]
        entry.waiting = [candidate for candidate in candidates if plain(candidate) not in seen]
        entry.measured = len(candidates) - len(entry.waiting)
        if entry.measured and (best := known.best(kernel, threads)) is not None:
            entry.schedule, entry.ratio = best
        return bool(candidates)

    def run(self) -> None:
        """Measure until the time is over or nothing is left."""
        kernels = self.tuning.kernels
        if not kernels:
            return
        defaults = [entry.kernel.family.default(entry.kernel.shape, entry.kernel.target) for entry in kernels]
        library, names = _build([(e.kernel, d) for e, d in zip(kernels, defaults, strict=True)])
        for entry, name in zip(kernels, names, strict=True):
            (timing,) = self._meter.time(library, [name], entry.arguments, _SCREENING_SECONDS)
            entry.seconds = timing.minimum
            self._tell()
        kernels.sort(key=lambda entry: -entry.calls * entry.seconds)
        while not self._late() and (chosen := self._next()) is not None:
            batch, chosen.waiting = chosen.waiting[:_BATCH], chosen.waiting[_BATCH:]
            self._measure(chosen, batch)

    def _next(self) -> TunedKernel | None:
        """The kernel that has had the least time for its share of the program's."""
        open_ = [entry for entry in self.tuning.kernels if entry.waiting]
        return max(open_, key=lambda e: e.calls * e.seconds * e.ratio / (1 + e.measured), default=None)

    def _measure(self, entry: TunedKernel, batch: list[Any]) -> None:
        kernel = entry.kernel
        default = kernel.family.default(kernel.shape, kernel.target)
        try:
            library, names = _build([(kernel, schedule) for schedule in [default, *batch]])
        except CompileError as error:
            if len(batch) == 1:
                entry.measured += 1
                self._keep(entry, batch[0], error=str(error))
            else:
                for schedule in batch:
                    self._measure(entry, [schedule])
            return
        for number, (schedule, name) in enumerate(zip(batch, names[1:], strict=True)):
            if self._late():
                entry.waiting = batch[number:] + entry.waiting
                return
            entry.measured += 1
            if name == names[0]:  # another way to write the default
                self._keep(entry, schedule, (entry.seconds, entry.seconds))
            else:
                self._compare(entry, schedule, library, [names[0], name])
            self._tell()

    def _compare(self, entry: TunedKernel, schedule: Any, library: bytes, names: list[str]) -> None:
        """Measure a candidate in turns with the default; twice if it seems to be the best so far."""
        from shave.backends.tvm.tune.database import MARGIN

        try:
            record = self._keep(entry, schedule, self._time(entry, library, names, _SCREENING_SECONDS))
            if record.ratio * MARGIN > 1 or record.ratio >= entry.ratio:
                return
            times = self._time(entry, library, names, _CONFIRMING_SECONDS)
            record = self._keep(entry, schedule, times, confirmed=True)
        except CompileError as error:
            self._keep(entry, schedule, error=str(error))
            return
        if record.ratio * MARGIN <= 1 and record.ratio < entry.ratio:
            entry.schedule, entry.ratio = schedule, record.ratio

    def _time(self, entry: TunedKernel, library: bytes, names: list[str], seconds: float) -> tuple[float, float]:
        """Seconds of the default and of a candidate. Neither luck nor a slow moment makes the candidate faster."""
        default, candidate = self._meter.time(library, names, entry.arguments, seconds)
        rounds = zip(default.samples, candidate.samples, strict=True)
        ratio = statistics.median(after / before for before, after in rounds)
        return default.minimum, max(candidate.minimum, default.minimum * ratio)

    def _keep(
        self,
        entry: TunedKernel,
        schedule: Any,
        times: tuple[float, float] | tuple[None, None] = (None, None),
        confirmed: bool = False,
        error: str | None = None,
    ) -> Record:
        from shave.backends.tvm.schedules import plain
        from shave.backends.tvm.tune.database import Record, append, machine_of

        default_seconds, seconds = times
        machine = machine_of(entry.kernel.target)
        fields = (self._threads, plain(schedule), seconds, default_seconds, confirmed, error)
        record = Record(entry.kernel.key, machine, *fields)
        append(self._path, record)
        return record

    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _tell(self) -> None:
        self.tuning.elapsed = time.monotonic() - self._started
        self._progress(self.tuning)


def _is_static(entry: TunedKernel) -> bool:
    return all(None not in argument.shape for argument in entry.arguments)


def _build(choices: Sequence[tuple[Kernel, Any]]) -> tuple[bytes, list[str]]:
    """One library of several kernels, and the name of each in it."""
    from shave.backends.tvm.adapter import tvm
    from shave.backends.tvm.build import build
    from shave.backends.tvm.cache import default_cache
    from shave.backends.tvm.emit.emitter import own_function
    from shave.backends.tvm.naming import name_by_content
    from shave.backends.tvm.worker import workers

    functions = {
        tvm.ir.GlobalVar(f"{kernel.name}_{number}"): own_function(kernel, schedule)
        for number, (kernel, schedule) in enumerate(choices)
    }
    module, names = name_by_content(tvm.IRModule(functions))
    library = build(module, choices[0][0].target, workers.generate, default_cache())
    return library, [names[variable.name_hint] for variable in functions]
