"""What measurements find: one JSON object a line, about one kind of machine and one version of the code generator."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shave.backends.manifest import made_with
from shave.backends.target import Target
from shave.backends.tvm.build import CODEGEN

if TYPE_CHECKING:
    from shave.ir.program import Program
    from shave.passes.manager import PassManager


@dataclass(frozen=True)
class Record:
    """A schedule of a kernel beside the default one, both measured inside of a program.

    Attributes:
        kernel: :attr:`shave.backends.tvm.schedules.Kernel.key`.
        machine: :func:`machine_of` the target.
        threads: Threads of the call.
        schedule: The schedule's fields, as JSON data.
        seconds: Duration of one call, or None if the schedule failed.
        default_seconds: The same of the default schedule, measured in turns with it.
        confirmed: Whether this is a repeated, longer measurement.
        error: Why the schedule failed.
    """

    kernel: str
    machine: str
    threads: int
    schedule: Any
    seconds: float | None
    default_seconds: float | None
    confirmed: bool = False
    error: str | None = None

    def __post_init__(self) -> None:
        _check(self, schedule=dict, confirmed=bool, error=(str, type(None)))
        _check_seconds(each for each in (self.seconds, self.default_seconds) if each is not None)

    @property
    def ratio(self) -> float:
        """Duration relative to the default; infinite where the schedule failed."""
        return math.inf if self.seconds is None or self.default_seconds is None else self.seconds / self.default_seconds


@dataclass(frozen=True)
class Comparison:
    """The ways to compute an operator, all measured in turns inside of programs that differ in them.

    Attributes:
        problem: :func:`problem_key` of the direct way.
        machine: As in :class:`Record`.
        threads: Threads of the call.
        seconds: Duration of one call, by the name of the way: ``direct``, ``winograd 4`` ...
    """

    problem: str
    machine: str
    threads: int
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        _check(self, seconds=dict)
        _check_seconds(self.seconds.values())


@dataclass(frozen=True)
class Outcome:
    """A whole program by all that was found beside the same by defaults and estimates, end to end.

    Attributes:
        program: :func:`program_key`.
        machine: As in :class:`Record`.
        threads: Threads of the call.
        seconds: Duration of one call by what was found.
        default_seconds: The same without, measured in turns with it.
    """

    program: str
    machine: str
    threads: int
    seconds: float
    default_seconds: float

    def __post_init__(self) -> None:
        _check(self, program=str)
        _check_seconds((self.seconds, self.default_seconds))


Entry = Record | Comparison | Outcome
_KINDS: dict[str, type[Entry]] = {"kernel": Record, "problem": Comparison, "program": Outcome}
"""By the field that only lines of that kind have."""
_KEYS = ("kernel", "problem")
"""Fields that are JSON on a line and its text in memory, where it is looked up."""


def to_line(entry: Entry) -> str:
    """An entry as a line of the file."""
    fields = dataclasses.asdict(entry)
    return json.dumps({name: json.loads(v) if name in _KEYS else v for name, v in fields.items()}) + "\n"


def from_line(line: str) -> Entry:
    """Read a line.

    Raises:
        ValueError: It is no entry.
    """
    try:
        fields = json.loads(line, parse_constant=_no_constant)
        kind = next((kind for name, kind in _KINDS.items() if name in fields), Record)
        given: dict[str, Any] = {
            name: json.dumps(value, sort_keys=True) if name in _KEYS else value for name, value in fields.items()
        }
        return kind(**given)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def machine_of(target: Target) -> str:
    """What decides how fast a schedule is beside the kernel: a digest of target and versions.

    The number of cores is not part of it: records tell the number of threads.
    """
    processor = [target.cpu, target.triple, sorted(target.features)]
    sizes = [target.vector_bytes, target.vector_registers, target.l1_bytes, target.l2_bytes]
    text = json.dumps([processor, sizes, made_with(), CODEGEN])
    return f"{target.cpu}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def problem_key(problem: Any) -> str:
    """A problem of :mod:`shave.passes.problems` as JSON."""
    return json.dumps(dataclasses.asdict(problem), sort_keys=True)


def program_key(program: Program, passes: PassManager) -> str:
    """What decides on a compilation beside target, threads and database: a digest of program and passes."""
    return hashlib.sha256(json.dumps([program.structural_hash(), str(passes)]).encode()).hexdigest()


def _check(entry: Any, **kinds: Any) -> None:
    """Refuse fields of another type.

    Raises:
        ValueError: Names them.
    """
    wrong = [name for name, kind in {"machine": str, "threads": int, **kinds}.items() if not _is(entry, name, kind)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} is of another type")


def _is(entry: Any, name: str, kind: Any) -> bool:
    return isinstance(getattr(entry, name), kind)


def _check_seconds(seconds: Any) -> None:
    for each in seconds:
        if not (isinstance(each, float) and 0 < each < math.inf):
            raise ValueError(f"{each!r} is no duration")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no duration")
