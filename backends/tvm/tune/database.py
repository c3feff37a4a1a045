"""Measurements of schedules, one JSON object a line, in a file that can be joined with others by ``cat``.

A record is about one kernel and one schedule on one kind of machine, by one version of the code generator. Records of
other machines and versions lie in the same file and are passed over. Nothing in a file can do more than choose among
the schedules that a kernel family itself proposes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shave.backends.manifest import made_with
from shave.backends.target import Target
from shave.backends.tvm.build import CODEGEN
from shave.backends.tvm.schedules import Argument, Kernel, plain
from shave.ir.errors import ReadError, WriteError

MARGIN = 1.02
"""How many times as fast as the default a schedule must be, in a measurement that was repeated, to be preferred."""

_LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Record:
    """What a measurement found.

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

    @property
    def ratio(self) -> float:
        """Duration relative to the default; infinite where the schedule failed."""
        return math.inf if self.seconds is None or self.default_seconds is None else self.seconds / self.default_seconds

    def to_line(self) -> str:
        """The record as a line of the file."""
        return json.dumps({**dataclasses.asdict(self), "kernel": json.loads(self.kernel)}) + "\n"

    @staticmethod
    def from_line(line: str) -> Record:
        """Read a line.

        Raises:
            ValueError: It is no record.
        """
        try:
            fields = json.loads(line, parse_constant=_no_constant)
            record = Record(**{**fields, "kernel": json.dumps(fields["kernel"], sort_keys=True)})
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        for seconds in (record.seconds, record.default_seconds):
            if seconds is not None and not (isinstance(seconds, float) and 0 < seconds < math.inf):
                raise ValueError(f"{seconds!r} is no duration")
        wrong = [
            name
            for name, kind in (("machine", str), ("threads", int), ("schedule", dict), ("confirmed", bool))
            if not isinstance(getattr(record, name), kind)
        ]
        if wrong or not isinstance(record.error, (str, type(None))):
            raise ValueError(f"{', '.join(wrong) or 'error'} is of another type")
        return record


def machine_of(target: Target) -> str:
    """What decides how fast a schedule is beside the kernel: a digest of target and versions.

    The number of cores is not part of it: records tell the number of threads.
    """
    processor = [target.cpu, target.triple, sorted(target.features)]
    sizes = [target.vector_bytes, target.vector_registers, target.l1_bytes, target.l2_bytes]
    text = json.dumps([processor, sizes, made_with(), CODEGEN])
    return f"{target.cpu}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Database:
    """The records of a file."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records: dict[tuple[str, str], dict[tuple[int, str, bool], Record]] = {}
        for record in records:
            self.add(record)

    @staticmethod
    def read(path: Path) -> Database:
        """Read a file. Damaged lines are skipped with a warning that gives their number.

        Raises:
            ReadError: There is no such file, or it cannot be read.
        """
        try:
            with path.open("rb") as stream:
                return Database(_records(path, stream))
        except OSError as error:
            raise ReadError(f"{path}: {error.strerror}") from error

    def add(self, record: Record) -> None:
        """Take a record in place of an older one about the same."""
        about = self._records.setdefault((record.kernel, record.machine), {})
        about[record.threads, json.dumps(record.schedule, sort_keys=True), record.confirmed] = record

    def __iter__(self) -> Iterator[Record]:
        for about in self._records.values():
            yield from about.values()

    def __len__(self) -> int:
        return sum(len(about) for about in self._records.values())

    def of(self, kernel: Kernel, threads: int) -> list[Record]:
        """The records about a kernel on its target with that many threads."""
        about = self._records.get((kernel.key, machine_of(kernel.target)), {})
        return [record for (count, _, _), record in about.items() if count == threads]

    def best(self, kernel: Kernel, threads: int) -> tuple[Any, float] | None:
        """The schedule that is confirmed to beat the default by most, and its duration relative to the default's.

        Where the kernel was not measured with that many threads, measurements with the next number are taken.
        """
        counts = {count for count, _, _ in self._records.get((kernel.key, machine_of(kernel.target)), {})}
        if not counts:
            return None
        nearest = min(counts, key=lambda count: (abs(math.log(max(count, 1) / threads)), count))
        winners = sorted(
            (r for r in self.of(kernel, nearest) if r.confirmed and r.ratio * MARGIN <= 1), key=lambda r: r.ratio
        )
        if not winners:
            return None
        known = [(schedule, plain(schedule)) for schedule in kernel.family.candidates(kernel.shape, kernel.target)]
        return next(((s, w.ratio) for w in winners for s, fields in known if fields == w.schedule), None)

    def write(self, path: Path) -> None:
        """Write all records to a file, whole or not at all.

        Raises:
            WriteError: The file cannot be written.
        """
        try:
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as stream:
                try:
                    stream.writelines(record.to_line() for record in self)
                    stream.flush()
                    os.replace(stream.name, path)
                except BaseException:
                    os.unlink(stream.name)
                    raise
        except OSError as error:
            raise WriteError(f"{path}: {error.strerror}") from error


def create(path: Path) -> None:
    """Make an empty file where there is none.

    Raises:
        WriteError: The file cannot be written.
    """
    try:
        path.open("ab").close()
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror}") from error


def append(path: Path, record: Record) -> None:
    """Add a record to a file, at once; a line that a crash left unfinished stays a line of its own.

    Raises:
        WriteError: The file cannot be written.
    """
    try:
        with path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                torn = stream.read(1) != b"\n"
            else:
                torn = False
            stream.write((b"\n" if torn else b"") + record.to_line().encode())
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror}") from error


class Tuned:
    """Takes the schedules that a database prefers, and the families' defaults for the rest.

    Attributes:
        kernels: The different kernels that were asked for.
        decided: Those of them for which the database had a better schedule than the default.
    """

    def __init__(self, database: Database, threads: int) -> None:
        self._database = database
        self._threads = threads
        self._chosen: dict[Kernel, Any] = {}
        self.decided: set[Kernel] = set()

    @property
    def kernels(self) -> set[Kernel]:
        """The different kernels that were asked for."""
        return set(self._chosen)

    def choose(self, kernel: Kernel, arguments: Sequence[Argument]) -> Any:
        """The best schedule that is known."""
        if kernel not in self._chosen:
            best = self._database.best(kernel, self._threads)
            if best is not None:
                self.decided.add(kernel)
            default = kernel.family.default(kernel.shape, kernel.target)
            self._chosen[kernel] = default if best is None else best[0]
        return self._chosen[kernel]


def _records(path: Path, stream: Any) -> Iterator[Record]:
    number = 0
    while line := stream.readline(_LONGEST_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            yield Record.from_line(line.decode())
        except ValueError as error:
            warnings.warn(
                f"{path}: line {number} is no measurement and is skipped: {error}", RuntimeWarning, stacklevel=4
            )
            while not line.endswith(b"\n") and (line := stream.readline(_LONGEST_LINE)):
                pass


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no duration")
