"""The ways to compute an operator, compared inside of the program: convolutions directly, or by Winograd's method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shave.backends.target import Target
from shave.backends.tvm.oracle import kernel_of, method_of
from shave.backends.tvm.schedules import Kernel
from shave.backends.tvm.tune.database import Database, Tuned
from shave.backends.tvm.tune.meter import Meter, Samples, Variants
from shave.backends.tvm.tune.network import Network
from shave.backends.tvm.tune.records import Comparison, machine_of, problem_key
from shave.backends.tvm.tune.samples import per_call, relative
from shave.ir.errors import CompileError
from shave.ir.program import Program
from shave.passes.problems import Conv2d, Convolution, Oracle, Problem

Optimise = Callable[[Oracle], Program]
"""Runs the passes with an oracle."""

_WORTH = 1.6
"""A way is measured if its estimate is at most so many times the best one's."""
_SCHEDULES = 4
"""Schedules that each way may show its best with: the default and the candidates behind it."""
_SECONDS = 0.3
_PREFERRED, _REFUSED = 1e-9, 1.0


@dataclass(frozen=True)
class Contest:
    """A convolution that is worth computing in more than one way.

    Attributes:
        direct: What it computes.
        ways: Problems by the name of the way, the direct one first.
    """

    direct: Conv2d
    ways: Mapping[str, Convolution]


def contests(asked: Sequence[Problem], estimate: Oracle, known: Database, target: Target) -> list[Contest]:
    """What the database does not compare yet of the problems that passes ask about."""
    ways: dict[Conv2d, dict[str, Convolution]] = {}
    for problem in asked:
        if not isinstance(problem, Convolution):
            continue  # there is one way to compute it
        direct = problem if isinstance(problem, Conv2d) else problem.direct
        ways.setdefault(direct, {method_of(direct): direct})[method_of(problem)] = problem
    found = []
    for direct, problems in ways.items():
        compared = known.comparison(direct, target, target.cores)
        if direct.batch is None or (compared is not None and compared.threads == target.cores):
            continue
        seconds = {name: estimate(problem) for name, problem in problems.items()}
        times = {name: time for name, time in seconds.items() if time is not None}
        best = min(times.values(), default=0.0)
        worth = {n: p for n, p in problems.items() if n == "direct" or (n in times and times[n] <= best * _WORTH)}
        if "direct" in times and len(worth) > 1:
            found.append(Contest(direct, worth))
    return found


def compare(
    optimise: Optimise,
    listed: Sequence[Contest],
    estimate: Oracle,
    known: Database,
    meter: Meter,
    target: Target,
    folder: Path,
) -> list[Comparison]:
    """Measure programs that differ in the way of computing these convolutions, all in turns.

    A way that a pass refuses for its error is left out. Each is as fast as the best of a few schedules.

    Raises:
        UnsupportedError: The program cannot be compiled for the target.
    """
    names = dict.fromkeys(name for contest in listed for name in contest.ways)
    networks = {
        name: Network(optimise(_oracle(name, listed, estimate)), target, folder, Tuned(known, target.cores))
        for name in names
    }
    samples = _measure(networks, listed, meter, target)
    comparisons = []
    for contest in listed:
        seconds = _seconds(contest, networks, samples, target)
        if len(seconds) > 1:
            about = (problem_key(contest.direct), machine_of(target), target.cores)
            comparisons.append(Comparison(*about, seconds))
    return comparisons


def _oracle(name: str, listed: Sequence[Contest], estimate: Oracle) -> Oracle:
    """Makes passes choose one way wherever it takes part."""
    of = {contest.direct: contest for contest in listed}

    def seconds(problem: Problem) -> float | None:
        if not isinstance(problem, Convolution):
            return estimate(problem)
        direct = problem if isinstance(problem, Conv2d) else problem.direct
        if direct in of and name in of[direct].ways:
            return _PREFERRED if method_of(problem) == name else _REFUSED
        return estimate(problem)

    return seconds


def _measure(
    networks: Mapping[str, Network], listed: Sequence[Contest], meter: Meter, target: Target
) -> dict[str, list[Samples]]:
    """Samples of each program, with the first schedule of its kernels, the second ..."""
    programs = [_variants(name, network, listed, target) for name, network in networks.items()]
    try:
        found = meter.steps(programs, _SECONDS)
    except CompileError:  # some schedule behind the default fails
        found = meter.steps([Variants(network.artifact) for network in networks.values()], _SECONDS)
    return dict(zip(networks, found, strict=True))


def _variants(name: str, network: Network, listed: Sequence[Contest], target: Target) -> Variants:
    kernels = [k for contest in listed if name in contest.ways for k in _kernels(network, contest.ways[name], target)]
    libraries = []
    for number in range(1, _SCHEDULES):
        trial = {kernel: kernel.candidates[number] for kernel in kernels if number < len(kernel.candidates)}
        libraries += [network.variant(trial)] if trial else []
    dtypes = {network.names[kernel]: kernel.epilogue.dtype for kernel in kernels}
    return Variants(network.artifact, libraries, dtypes)


def _kernels(network: Network, problem: Convolution, target: Target) -> list[Kernel]:
    """Those of a program that compute a problem; they differ in their epilogues."""
    return [kernel for kernel in network.steps if (kernel.family, kernel.shape) == kernel_of(problem, target)]


def _seconds(
    contest: Contest, networks: Mapping[str, Network], samples: Mapping[str, list[Samples]], target: Target
) -> dict[str, float]:
    """Seconds of one call in each way that a program has taken."""
    taken: dict[str, list[list[float]]] = {}
    for name, problem in contest.ways.items():
        network = networks[name]
        steps = [step for kernel in _kernels(network, problem, target) for step in network.steps[kernel]]
        if steps:
            taken[name] = [per_call(each, steps) for each in samples[name]]
    if "direct" not in taken:
        return {}
    first = taken["direct"][0]
    return {name: min(first) * min(relative(first, each) for each in all_) for name, all_ in taken.items()}
