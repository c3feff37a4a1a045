"""The search among schedules: candidates of all kernels at once, measured inside of the program.

One *trial* is the program with another schedule for many kernels; so one run of it measures a candidate of each. What
looks better is measured again, for longer, and then all that won together: only that last measurement counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from shave.backends.tvm.schedules import Kernel, plain
from shave.backends.tvm.tune.database import MARGIN, Journal
from shave.backends.tvm.tune.meter import Meter, Samples, Variants
from shave.backends.tvm.tune.network import Network
from shave.backends.tvm.tune.records import Record, machine_of
from shave.backends.tvm.tune.samples import per_call, seconds_of_both
from shave.backends.tvm.tune.tuning import TunedKernel, Tuning
from shave.ir.errors import CompileError

_SCREENING_SECONDS, _CONFIRMING_SECONDS = 0.3, 1.5
_BATCH = 4
_FINALISTS = 3
_SPREAD = 30
"""A trial takes kernels whose share of the time, for each candidate that they had, is at least 1/30 of the largest."""

Trial = dict[Kernel, Any]
"""Kernels with a schedule for each."""


class Search:
    """The search for one program on one number of threads."""

    def __init__(
        self,
        network: Network,
        meter: Meter,
        journal: Journal,
        threads: int,
        tuning: Tuning,
        tell: Callable[[], None],
    ) -> None:
        """Find out what there is to measure.

        Args:
            network: The program, with default schedules.
            meter: Measures it.
            journal: What is known, and where to write what is found.
            threads: Threads of a call.
            tuning: Its kernels are set, and kept up to date.
            tell: Called whenever something was measured.
        """
        self._network = network
        self._meter = meter
        self._journal = journal
        self._threads = threads
        self._tuning = tuning
        self._tell = tell
        prepared = [self._prepared(kernel, len(steps)) for kernel, steps in network.steps.items()]
        tuning.kernels = [entry for entry in prepared if entry.waiting or entry.measured]

    def _prepared(self, kernel: Kernel, calls: int) -> TunedKernel:
        """A kernel with its candidates, sorted into measured and waiting."""
        candidates = kernel.candidates[1:]
        seen = [record.schedule for record in self._journal.database.of(kernel, self._threads)]
        waiting = [candidate for candidate in candidates if plain(candidate) not in seen]
        entry = TunedKernel(kernel, calls, waiting=waiting, measured=len(candidates) - len(waiting))
        if entry.measured and (best := self._journal.database.best(kernel, self._threads)) is not None:
            entry.schedule, entry.ratio = best
        return entry

    def run(self, deadline: float) -> None:
        """Measure until nothing is left, or until that time by ``time.monotonic``, but a few trials; then confirm."""
        if not self._tuning.kernels:
            return
        (defaults,) = self._time([], _SCREENING_SECONDS)
        for entry in self._tuning.kernels:
            entry.seconds = min(per_call(defaults, self._network.steps[entry.kernel]))
        self._tuning.kernels.sort(key=lambda entry: -entry.calls * entry.seconds)
        self._tell()
        while trials := self._next():
            for entry in self._tuning.kernels:
                entry.waiting = [c for c in entry.waiting if all(t.get(entry.kernel) != c for t in trials)]
            for trial in trials:
                for entry in self._tuning.kernels:
                    entry.measured += entry.kernel in trial
            self._measure(trials, _SCREENING_SECONDS)
            if time.monotonic() >= deadline:
                break
        self._confirm()

    def _next(self) -> list[Trial]:
        """A few trials of the kernels that had the least time for their share of the program's."""
        share = {e.kernel: e.calls * e.seconds * e.ratio / (1 + e.measured) for e in self._tuning.kernels if e.waiting}
        most = max(share.values(), default=0.0)
        chosen = [e for e in self._tuning.kernels if e.waiting and share[e.kernel] * _SPREAD >= most]
        trials = [{e.kernel: e.waiting[n] for e in chosen if n < len(e.waiting)} for n in range(_BATCH)]
        return [trial for trial in trials if trial]

    def _measure(self, trials: Sequence[Trial], seconds: float, *, confirmed: bool = False) -> None:
        """Measure trials in turns with the default, and write down what was found; find out which candidates fail."""
        try:
            base, *others = self._time(trials, seconds)
        except CompileError as error:
            parts = _parts(trials)
            if parts:
                for part in parts:
                    self._measure(part, seconds, confirmed=confirmed)
            else:
                ((kernel, schedule),) = trials[0].items()
                self._keep(kernel, schedule, None, None, error=str(error))
                self._tell()
            return
        for trial, samples in zip(trials, others, strict=True):
            for kernel, schedule in trial.items():
                steps = self._network.steps[kernel]
                default, taken = seconds_of_both(per_call(base, steps), per_call(samples, steps))
                self._keep(kernel, schedule, taken, default, confirmed=confirmed)
        self._tell()

    def _time(self, trials: Sequence[Trial], seconds: float) -> list[Samples]:
        """Seconds of each step with the default schedules, and with those of each trial."""
        libraries = [self._network.variant(trial) for trial in trials]
        dtypes = {self._network.names[kernel]: kernel.epilogue.dtype for trial in trials for kernel in trial}
        try:
            (samples,) = self._meter.steps([Variants(self._network.artifact, libraries, dtypes)], seconds)
        finally:
            for library in libraries:
                library.unlink()
        return samples

    def _confirm(self) -> None:
        """Measure the best few of each kernel once more, and then the winners together."""
        ranked = {entry.kernel: self._promising(entry.kernel)[:_FINALISTS] for entry in self._tuning.kernels}
        trials = [{k: best[n] for k, best in ranked.items() if n < len(best)} for n in range(_FINALISTS)]
        if not trials[0]:
            return
        self._measure([trial for trial in trials if trial], _CONFIRMING_SECONDS)
        winners: Trial = {}
        for entry in self._tuning.kernels:
            best = self._promising(entry.kernel)
            if best or entry.schedule is not None:
                winners[entry.kernel] = best[0] if best else entry.schedule
        if winners:
            self._measure([winners], _CONFIRMING_SECONDS, confirmed=True)
        for entry in self._tuning.kernels:
            found = self._journal.database.best(entry.kernel, self._threads)
            entry.schedule, entry.ratio = (None, 1.0) if found is None else found
        self._tell()

    def _promising(self, kernel: Kernel) -> list[Any]:
        """Candidates that seem faster than all that is confirmed, and were not measured to the end, the best first."""
        records = self._journal.database.of(kernel, self._threads)
        settled = [record.schedule for record in records if record.confirmed]
        least = min([1 / MARGIN, *(record.ratio for record in records if record.confirmed)])
        better = sorted((r for r in records if r.schedule not in settled and r.ratio < least), key=lambda r: r.ratio)
        candidates = [(c, plain(c)) for c in kernel.candidates]
        return [c for record in better for c, fields in candidates if fields == record.schedule]

    def _keep(
        self,
        kernel: Kernel,
        schedule: Any,
        seconds: float | None,
        default: float | None,
        *,
        confirmed: bool = False,
        error: str | None = None,
    ) -> None:
        about = (kernel.key, machine_of(kernel.target), self._threads, plain(schedule))
        self._journal.keep(Record(*about, seconds, default, confirmed, error))


def _parts(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The same in smaller pieces, by which to find out what fails; none if there is but one candidate."""
    if len(trials) > 1:
        return [[trial] for trial in trials]
    items = list(trials[0].items())
    half = len(items) // 2
    return [[dict(items[:half])], [dict(items[half:])]] if half else []
