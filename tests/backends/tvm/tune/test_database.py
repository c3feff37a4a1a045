from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shave
from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.lower import lower
from shave.backends.tvm.oracle import cost_oracle, measured_oracle
from shave.backends.tvm.schedules import Kernel
from shave.backends.tvm.tune.database import Database, Journal, Tuned, append
from shave.backends.tvm.tune.records import (
    Comparison,
    Outcome,
    from_line,
    machine_of,
    problem_key,
    program_key,
    to_line,
)
from shave.ir.errors import ReadError, WriteError
from shave.ir.program import Program
from shave.passes.manager import PassManager
from shave.passes.problems import Conv2d, Measured, WinogradConv2d
from tests.backends.tvm.tune.conftest import X, other_schedule, record


@pytest.fixture
def conv(kernels: dict[str, Kernel]) -> Kernel:
    return kernels["conv"]


def test_records_come_back_as_they_were(conv: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    records = [
        record(conv, other_schedule(conv), 0.8e-3),
        record(conv, conv.family.default(conv.shape, conv.target), 1e-3, confirmed=False, threads=2),
        record(conv, other_schedule(conv), None, default_seconds=None, error="it crashed", threads=3),
    ]
    for one in records:
        append(path, one)
    assert list(Database.read(path)) == records
    assert [set(json.loads(line)) for line in path.read_text().splitlines()] == [set(vars(records[0]))] * 3


def test_the_best_confirmed_schedule_wins(conv: Kernel) -> None:
    default = conv.family.default(conv.shape, conv.target)
    first, second, third = [c for c in conv.family.candidates(conv.shape, conv.target) if c != default][:3]
    records = [
        record(conv, first, 0.9e-3),
        record(conv, second, 0.8e-3),
        record(conv, third, 0.5e-3, confirmed=False),
    ]
    assert Database(records).best(conv, 1) == (second, pytest.approx(0.8))


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": 0.99e-3},  # not worth it
        {"confirmed": False},
        {"seconds": None, "error": "it crashed"},
        {"machine": "another"},
        {"kernel": "[]"},
        {"schedule": {"pixels": 1000, "vectors": 1000}},
        {"schedule": {"__class__": "os.system"}},
    ],
)
def test_anything_else_leaves_the_default(conv: Kernel, changes: dict[str, Any]) -> None:
    database = Database([replace(record(conv, other_schedule(conv), 0.5e-3), **changes)])
    assert database.best(conv, 1) is None


def test_targets_and_epilogues_are_told_apart(conv: Kernel, kernels: dict[str, Kernel]) -> None:
    database = Database([record(conv, other_schedule(conv), 0.5e-3)])
    assert database.best(conv, 1) is not None
    assert database.best(replace(conv, target=replace(conv.target, name="the same by another name")), 1) is not None
    assert database.best(replace(conv, target=replace(conv.target, l2_bytes=conv.target.l2_bytes * 2)), 1) is None
    assert database.best(replace(conv, epilogue=kernels["matmul"].epilogue), 1) is None


def test_nearest_number_of_threads(conv: Kernel) -> None:
    default = conv.family.default(conv.shape, conv.target)
    one, eight = [c for c in conv.family.candidates(conv.shape, conv.target) if c != default][:2]
    database = Database([record(conv, one, 0.5e-3), record(conv, eight, 0.5e-3, threads=8)])
    chosen = {threads: database.best(conv, threads) for threads in (1, 2, 4, 16)}
    assert [c and c[0] for c in chosen.values()] == [one, one, eight, eight]


@pytest.mark.parametrize(
    "damage",
    [
        '{"problem": {}, "machine": "m", "threads": 1, "seconds": {"direct": "fast"}}',
        '{"problem": {}, "machine": "m", "threads": 1, "seconds": [1.0]}',
        '{"program": "p", "machine": "m", "threads": 1, "seconds": 1.0, "default_seconds": Infinity}',
        '{"program": 3, "machine": "m", "threads": 1, "seconds": 1.0, "default_seconds": 1.0}',
        "",
        "not JSON",
        "{}",
        "[1, 2]",
        '"' + "x" * 200_000,
        "[" * 50_000,
        '{"kernel": [], "machine": 3, "threads": 1, "schedule": {}, "seconds": 1.0, "default_seconds": 1.0}',
        '{"kernel": [], "machine": "m", "threads": 1, "schedule": {}, "seconds": NaN, "default_seconds": 1.0}',
        '{"kernel": [], "machine": "m", "threads": 1, "schedule": {}, "seconds": -1.0, "default_seconds": 1.0}',
        '{"kernel": [], "machine": "m", "threads": 1, "schedule": 7, "seconds": 1.0, "default_seconds": 1.0}',
        '{"kernel": [], "machine": "m", "threads": 1, "schedule": {}, "seconds": 1.0, "default_seconds": 1.0, "x": 1}',
    ],
)
def test_damaged_lines_are_named_and_skipped(conv: Kernel, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "tuned.jsonl"
    good = record(conv, other_schedule(conv), 0.5e-3)
    path.write_text(to_line(good) + damage + "\n" + to_line(replace(good, threads=2)))
    if damage:
        with pytest.warns(RuntimeWarning, match=r"tuned.jsonl: line 2 is no measurement and is skipped"):
            database = Database.read(path)
    else:
        database = Database.read(path)
    assert len(database) == 2


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.warns(RuntimeWarning, match="line 1"):
        assert len(Database.read(path)) == 0


def test_line_that_a_crash_tore_stays_alone(conv: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    good = record(conv, other_schedule(conv), 0.5e-3)
    path.write_text(to_line(good)[:40])
    append(path, good)
    with pytest.warns(RuntimeWarning, match="line 1"):
        assert list(Database.read(path)) == [good]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"absent.jsonl: No such file"):
        Database.read(tmp_path / "absent.jsonl")
    with pytest.raises(WriteError, match="No such file"):
        Database().write(tmp_path / "absent" / "tuned.jsonl")


def test_later_records_replace_earlier_ones_when_joined(conv: Kernel, tmp_path: Path) -> None:
    old, new = (record(conv, other_schedule(conv), seconds) for seconds in (0.9e-3, 0.7e-3))
    Database([old, new, replace(old, threads=2)]).write(tmp_path / "joined.jsonl")
    assert list(Database.read(tmp_path / "joined.jsonl")) == [new, replace(old, threads=2)]
    assert os.listdir(tmp_path) == ["joined.jsonl"]


def test_compile_uses_what_the_database_says(program: Program, conv: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    chosen = other_schedule(conv)
    append(path, record(conv, chosen, 0.5e-3))
    schedules = Tuned(Database.read(path), 1)
    tuned = lower(program, resolve("cpu"), schedules)
    assert schedules.decided == {conv}
    assert {k.name for k in schedules.kernels} == {"conv", "matmul"}
    default = lower(program, resolve("cpu"))
    names = [{call.family: call.name for call in lowered.kernels} for lowered in (tuned, default)]
    assert names[0]["conv"] != names[1]["conv"]  # functions are named by their code
    assert names[0]["matmul"] == names[1]["matmul"]
    artifact = shave.compile(program, threads=1, tuned=path)
    assert artifact.manifest.figures["tuning"] == {"kernels": 2, "decided": 1}
    x = X.numpy()
    plain = shave.compile(program, threads=1)
    assert "tuning" not in plain.manifest.figures
    np.testing.assert_allclose(artifact(x), plain(x), rtol=1e-5, atol=1e-6)


def test_compile_with_a_database_that_is_not_there(program: Program) -> None:
    with pytest.raises(ReadError, match=r"absent\.jsonl"):
        shave.compile(program, tuned="absent.jsonl")


def test_record_needs_all_fields() -> None:
    with pytest.raises(ValueError, match="kernel"):
        from_line("{}")


# The ways to compute a convolution, and whole programs

WIDE = Conv2d(1, 64, 64, 14, 14, (3, 3), padding=(1, 1))


def comparison(target: Target, problem: Conv2d = WIDE, **seconds: float) -> Comparison:
    """On one thread: ``direct=3.0, winograd_4=1.0``."""
    named = {name.replace("_", " "): value for name, value in seconds.items()}
    return Comparison(problem_key(problem), machine_of(target), 1, named)


def test_every_kind_of_entry_comes_back_as_it_was(conv: Kernel, tmp_path: Path) -> None:
    entries = [
        record(conv, other_schedule(conv), 0.5e-3),
        comparison(conv.target, direct=3e-3, winograd_4=1e-3),
        Outcome("a program", machine_of(conv.target), 2, 1e-3, 2e-3),
    ]
    journal = Journal(tmp_path / "tuned.jsonl")
    for entry in entries:
        journal.keep(entry)
    assert list(journal.database) == list(Database.read(tmp_path / "tuned.jsonl")) == entries
    assert list(Journal(tmp_path / "tuned.jsonl").database) == entries


def test_measured_ways_answer_ahead_of_estimates() -> None:
    target = replace(resolve("x86-64-v4"), cores=1)
    estimate = cost_oracle(target)
    assert estimate is not None
    database = Database([comparison(target, direct=3e-3, winograd_4=1e-3)])
    oracle = measured_oracle(database, target)
    assert oracle is not None
    four, six = (WinogradConv2d(1, 64, 64, 14, 14, (1, 1), tile) for tile in (4, 6))
    assert [oracle(problem) for problem in (WIDE, four)] == [3e-3, 1e-3]
    assert isinstance(oracle(WIDE), Measured)
    assert oracle(six) is None  # its estimate says nothing beside measurements of others
    other = replace(WIDE, height=15)
    assert oracle(other) == estimate(other)
    assert not isinstance(oracle(other), Measured)
    apart = replace(target, l2_bytes=2 * target.l2_bytes)
    unknown = measured_oracle(database, apart)
    assert unknown is not None
    assert not isinstance(unknown(WIDE), Measured)


def test_newer_comparisons_replace_older_ones() -> None:
    target = resolve("x86-64-v4")
    database = Database(
        [comparison(target, direct=3.0, winograd_4=1.0), comparison(target, direct=1.0, winograd_4=3.0)]
    )
    found = database.comparison(WIDE, target, 1)
    assert found is not None
    assert (len(database), found.seconds["direct"]) == (1, 1.0)
    assert database.comparison(WIDE, target, 4) == found  # the next number of threads


def test_compile_chooses_the_way_that_was_measured_to_be_fastest(two_ways: Program, tmp_path: Path) -> None:
    target = replace(resolve("cpu"), cores=1)
    problem = Conv2d(1, 32, 32, 12, 12, (3, 3), padding=(1, 1))
    found = {}
    for name, seconds in {"direct": 0.5e-3, "tile 2": 2e-3, "tile 4": 4e-3}.items():
        path = tmp_path / f"{name}.jsonl"
        append(path, comparison(target, problem, direct=1e-3, winograd_2=seconds, winograd_4=1.9e-3))
        (said,) = shave.compile(two_ways, threads=1, tuned=path).manifest.report[-1]["entries"]
        found[name] = (said["verdict"], said["text"].split(";")[0])
    assert found == {
        "direct": ("applied", "tile 2: measured 0.5 ms instead of 1 ms"),
        "tile 2": ("skipped", "no faster: tile 4: measured 1.9 ms instead of 1 ms"),
        "tile 4": ("skipped", "no faster: tile 4: measured 1.9 ms instead of 1 ms"),
    }


def test_a_program_that_was_slower_in_the_end_is_compiled_without(
    program: Program, conv: Kernel, tmp_path: Path
) -> None:
    target = replace(resolve("cpu"), cores=1)
    path = tmp_path / "tuned.jsonl"
    key = program_key(program, PassManager("exact"))
    for entry, decided in (
        (record(conv, other_schedule(conv), 0.5e-3), 1),
        (Outcome(key, machine_of(target), 1, 3e-3, 2e-3), 0),
        (Outcome(key, machine_of(target), 2, 1e-3, 2e-3), 0),
        (Outcome(key, machine_of(target), 1, 1e-3, 2e-3), 1),
    ):
        append(path, entry)
        artifact = shave.compile(program, threads=1, tuned=path)
        assert artifact.manifest.figures["tuning"] == {"kernels": 2, "decided": decided}
