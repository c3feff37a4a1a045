"""Measurements, one JSON object a line, in a file that can be joined with others by ``cat``.

What other machines and versions found lies in the same file and is passed over. Nothing in a file can do more than
choose among the schedules that a kernel family itself proposes, and among the methods that passes weigh.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shave.backends.target import Target
from shave.backends.tvm.schedules import Argument, Kernel, plain
from shave.backends.tvm.tune.records import (
    Comparison,
    Entry,
    Outcome,
    Record,
    from_line,
    machine_of,
    problem_key,
    to_line,
)
from shave.ir.errors import ReadError, WriteError
from shave.passes.problems import Conv2d

MARGIN = 1.02
"""How many times as fast as the default a schedule must be, in a measurement that was repeated, to be preferred."""

_LONGEST_LINE = 1 << 16


class Database:
    """The entries of a file."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[tuple[Any, ...], dict[tuple[Any, ...], Entry]] = {}
        for entry in entries:
            self.add(entry)

    @staticmethod
    def read(path: Path) -> Database:
        """Read a file. Damaged lines are skipped with a warning that gives their number.

        Raises:
            ReadError: There is no such file, or it cannot be read.
        """
        try:
            with path.open("rb") as stream:
                return Database(_entries(path, stream))
        except OSError as error:
            raise ReadError(f"{path}: {error.strerror}") from error

    def add(self, entry: Entry) -> None:
        """Take an entry in place of an older one about the same."""
        detail: tuple[Any, ...] = (entry.threads,)
        if isinstance(entry, Record):
            about = entry.kernel
            detail += (json.dumps(entry.schedule, sort_keys=True), entry.confirmed)
        else:
            about = entry.problem if isinstance(entry, Comparison) else entry.program
        self._entries.setdefault((type(entry), about, entry.machine), {})[detail] = entry

    def __iter__(self) -> Iterator[Entry]:
        for about in self._entries.values():
            yield from about.values()

    def __len__(self) -> int:
        return sum(len(about) for about in self._entries.values())

    def _about(self, kind: type[Entry], key: str, target: Target) -> list[Any]:
        return list(self._entries.get((kind, key, machine_of(target)), {}).values())

    def of(self, kernel: Kernel, threads: int) -> list[Record]:
        """The records about a kernel on its target with that many threads."""
        return [record for record in self._about(Record, kernel.key, kernel.target) if record.threads == threads]

    def best(self, kernel: Kernel, threads: int) -> tuple[Any, float] | None:
        """The schedule that is confirmed to beat the default by most, and its duration relative to the default's.

        Where the kernel was not measured with that many threads, measurements with the next number are taken.
        """
        records = _nearest(self._about(Record, kernel.key, kernel.target), threads)
        winners = sorted((r for r in records if r.confirmed and r.ratio * MARGIN <= 1), key=lambda r: r.ratio)
        if not winners:
            return None
        known = [(schedule, plain(schedule)) for schedule in kernel.candidates]
        return next(((s, w.ratio) for w in winners for s, fields in known if fields == w.schedule), None)

    def comparison(self, problem: Conv2d, target: Target, threads: int) -> Comparison | None:
        """How the ways to compute a convolution compare; as in :meth:`best`, else with the next number of threads."""
        found = _nearest(self._about(Comparison, problem_key(problem), target), threads)
        return found[0] if found else None

    def helps(self, program: str, target: Target, threads: int) -> bool:
        """Whether a program is faster by what is here than without; so it counts where it was not measured.

        Args:
            program: Key of the program; see :func:`shave.backends.tvm.tune.records.program_key`.
            target: What it is compiled for.
            threads: Threads of a call.
        """
        outcomes: list[Outcome] = self._about(Outcome, program, target)
        return all(o.seconds <= o.default_seconds for o in outcomes if o.threads == threads)

    def write(self, path: Path) -> None:
        """Write everything to a file, whole or not at all.

        Raises:
            WriteError: The file cannot be written.
        """
        try:
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as stream:
                try:
                    stream.writelines(map(to_line, self))
                    stream.flush()
                    os.replace(stream.name, path)
                except BaseException:
                    os.unlink(stream.name)
                    raise
        except OSError as error:
            raise WriteError(f"{path}: {error.strerror}") from error


class Journal:
    """A database that grows, and its file, in which each entry is as soon as it is made.

    Attributes:
        database: All that the file holds.
    """

    def __init__(self, path: Path) -> None:
        """Read a file; one that is not there is made.

        Raises:
            ReadError: It cannot be read.
            WriteError: It cannot be written.
        """
        try:
            path.open("ab").close()
        except OSError as error:
            raise WriteError(f"{path}: {error.strerror}") from error
        self._path = path
        self.database = Database.read(path)

    def keep(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            WriteError: The file cannot be written.
        """
        self.database.add(entry)
        append(self._path, entry)


def append(path: Path, entry: Entry) -> None:
    """Add an entry to a file, at once; a line that a crash left unfinished stays a line of its own.

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
            stream.write((b"\n" if torn else b"") + to_line(entry).encode())
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
            self._chosen[kernel] = kernel.default if best is None else best[0]
        return self._chosen[kernel]


def _nearest(entries: list[Any], threads: int) -> list[Any]:
    """Those with that number of threads, or with the number next to it."""
    counts = {entry.threads for entry in entries}
    nearest = min(counts, key=lambda count: (abs(math.log(max(count, 1) / threads)), count), default=0)
    return [entry for entry in entries if entry.threads == nearest]


def _entries(path: Path, stream: Any) -> Iterator[Entry]:
    number = 0
    while line := stream.readline(_LONGEST_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            yield from_line(line.decode())
        except ValueError as error:
            warnings.warn(
                f"{path}: line {number} is no measurement and is skipped: {error}", RuntimeWarning, stacklevel=4
            )
            while not line.endswith(b"\n") and (line := stream.readline(_LONGEST_LINE)):
                pass
