"""Time one model on every engine: outputs compared first, then turns (A B C, A B C ...)."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shave
from benchmarks.latency.engines import OURS, Array, UnavailableError
from benchmarks.latency.models import Model
from benchmarks.latency.precisions import PRECISIONS, Samples, in_float
from benchmarks.latency.process import Engine, one_line
from shave.backends.tvm.roofline import Roofline
from shave.ir.program import Program

WARM_SECONDS = 0.005
SAMPLE_SECONDS = 0.02

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What became of one engine; ``reason`` says why it was not timed, and then the times are None.

    Attributes:
        minimum: Seconds per call in the fastest turn.
        median: Seconds per call in the middle one.
        error: Largest difference of an output from torch eager's, relative to the largest value of that output.
        reason: Why it was not timed; empty if it was.
    """

    minimum: float | None = None
    median: float | None = None
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One model in one precision on some number of threads.

    Attributes:
        model: Its name.
        precision: A key of :data:`benchmarks.latency.precisions.PRECISIONS`.
        threads: Threads of each engine.
        macs: Multiply-accumulates of one call, convolutions counted as direct ones.
        bytes: Bytes of weights, inputs and outputs.
        limit: Least seconds for both on this machine.
        engines: Results by the name of the engine.
    """

    model: str
    precision: str
    threads: int
    macs: int
    bytes: int
    limit: float
    engines: dict[str, Result] = field(default_factory=dict)

    def best_peer(self, figure: str) -> float | None:
        """The least ``minimum`` or ``median`` of the peers; each figure may be another engine's."""
        times = [getattr(result, figure) for name, result in self.engines.items() if name not in OURS]
        return min((time for time in times if time is not None), default=None)

    def ratio(self, figure: str, engine: str = "shave") -> float | None:
        """The best peer's time divided by that of an engine of ours; above one, ours is faster."""
        best, result = self.best_peer(figure), self.engines.get(engine)
        ours = getattr(result, figure) if result is not None else None
        return best / ours if best is not None and ours is not None else None

    def of_limit(self, engine: str = "shave") -> float | None:
        """The limit divided by an engine's fastest time: one at the limit, above one with fewer multiplications."""
        result = self.engines.get(engine)
        return self.limit / result.minimum if result is not None and result.minimum else None

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` takes back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Row:
        """Rebuild a row; keys that are not a row's are ignored."""
        names = Row.__dataclass_fields__.keys()
        engines = {name: Result(**result) for name, result in data["engines"].items()}
        return Row(**{**{key: value for key, value in data.items() if key in names}, "engines": engines})


def geometric_mean(values: Sequence[float]) -> float:
    """The mean that suits ratios.

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("no values to take the mean of")
    return math.exp(statistics.fmean(map(math.log, values)))


def difference(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Largest difference relative to the largest expected value of the same output.

    Infinite where an output is missing, has another number of elements, or holds NaN. Engines without a batch axis give
    other shapes for the same elements, so these are not compared.
    """
    if len(expected) != len(got):
        return math.inf
    worst = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.size != have.size:
            return math.inf
        wide, other = want.astype(np.float64).ravel(), have.astype(np.float64).ravel()
        scale = np.abs(wide).max(initial=0) or 1.0
        error = float(np.abs(wide - other).max(initial=0) / scale)
        worst = error if math.isnan(error) else max(worst, error)
        if math.isnan(worst):
            return math.inf
    return worst


class Prepared:
    """The files of one model in one precision, from which engines load it; use it as a context manager."""

    def __init__(self, model: Model, precision: str) -> None:
        """Load the model, run it in torch and write what is every engine's."""
        self._model, self.precision = model, PRECISIONS[precision]
        program, self.inputs = model.load()
        self.program: Program = in_float(program)
        with torch.no_grad():
            results = self.program(*[torch.from_numpy(array) for array in self.inputs])
        outputs = results if isinstance(results, tuple) else (results,)
        self.expected = [output.numpy() for output in outputs]
        cost = self.program.cost()
        self.macs = cost.macs
        weights = cost.parameters * self.precision.weight_bytes
        self.bytes = weights + sum(array.nbytes for array in [*self.inputs, *self.expected])
        self._folder = tempfile.TemporaryDirectory(prefix="latency-")
        self.folder = Path(self._folder.name)
        np.savez(
            self.folder / "inputs.npz", allow_pickle=False, **{f"{k:03}": array for k, array in enumerate(self.inputs)}
        )
        self.program.save(self.folder / "model.pt2")
        self.program.to_onnx(self.folder / "model.onnx")

    @cached_property
    def _samples(self) -> Samples:
        return self._model.samples()

    def write(self, engine: str, threads: int, tuned: Path | None, progress: Progress = lambda what: None) -> None:
        """Write the engine's own form of the model; ``tuned`` counts for ``shave tuned`` alone."""
        if engine in OURS:
            rewrite = self.precision.rewrite.get(engine)
            artifact = shave.compile(
                rewrite(self.program, self._samples) if rewrite else self.program,
                threads=threads,
                tuned=tuned if engine == "shave tuned" else None,
                progress=lambda what, done, total: progress(what),
            )
            artifact.save(self.folder / f"{engine}.shave")
        elif convert := self.precision.convert.get(engine):
            convert(self.folder, self._samples)

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def measure(
    model: str,
    precision: str,
    prepared: Prepared,
    roofline: Roofline,
    engines: Sequence[str],
    *,
    rounds: int,
    tolerance: float,
    limit: float,
    tuned: Path | None = None,
    progress: Progress = lambda what: None,
) -> Row:
    """Start every engine, compare its outputs with torch eager's, and let those that agree take turns.

    Args:
        model: The name for the row.
        precision: The precision for the row.
        prepared: Its files.
        roofline: What this machine can do on the row's number of threads.
        engines: Names of the engines.
        rounds: Turns of each engine.
        tolerance: Largest :func:`difference` of an engine that is timed.
        limit: Seconds that an engine may take to get ready.
        tuned: Database for the engine ``shave tuned``.
        progress: Told what is being done.
    """
    threads = roofline.threads
    results: dict[str, Result] = {}
    with ExitStack() as stack:
        running: dict[str, Engine] = {}
        for name in engines:
            progress(f"{model}: {name} gets ready")
            try:
                prepared.write(name, threads, tuned, lambda what: progress(f"{model}: {what}"))
                engine = stack.enter_context(Engine(name, prepared.folder, threads))
                error = difference(prepared.expected, engine.prepare(limit))
            except Exception as failure:  # whatever stops one engine is no reason to stop the run
                results[name] = Result(reason=one_line(failure))
                continue
            if error > tolerance:
                finite = math.isfinite(error)
                reason = f"its outputs are off by {error:.1e}" if finite else "its outputs do not match, or hold NaN"
                results[name] = Result(error=error if finite else None, reason=reason)
                engine.close()
                continue
            results[name] = Result(error=error)
            running[name] = engine
        samples: dict[str, list[float]] = {name: [] for name in running}
        for round_ in range(rounds):
            progress(f"{model}: round {round_ + 1} of {rounds}")
            for name, engine in list(running.items()):
                taken = _turn(engine)
                if isinstance(taken, float):
                    samples[name].append(taken)
                else:
                    results[name] = Result(error=results[name].error, reason=taken)
                    del running[name]
        for name in running:
            results[name] = Result(min(samples[name]), statistics.median(samples[name]), results[name].error)
    least = roofline.seconds(prepared.macs, prepared.bytes, integers=prepared.precision.integers)
    return Row(model, precision, threads, prepared.macs, prepared.bytes, least, results)


def _turn(engine: Engine) -> float | str:
    """Seconds per call, or why there are none."""
    try:
        return engine.turn(WARM_SECONDS, SAMPLE_SECONDS)
    except UnavailableError as failure:
        return str(failure)
