from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import shave
from shave.backends.targets import resolve
from shave.backends.timing import Timing
from shave.backends.tvm.schedules import Argument
from shave.backends.tvm.tune import meter, tuner
from shave.backends.tvm.tune.database import Database
from shave.backends.tvm.tune.tuner import Tuning
from shave.ir.errors import CompileError, TargetError, WriteError
from shave.ir.program import Program
from tests.backends.tvm.tune.conftest import Asked, TwoKernels, X

TINY = 1 / 60  # one second


class Pretend:
    """A meter that tells what it is told to tell, and writes down what it was asked."""

    def __init__(self, seconds: Callable[[int], list[float]]) -> None:
        self.seconds = seconds
        self.asked: list[list[str]] = []

    def __call__(self, threads: int, weight_bytes: int) -> Pretend:
        return self

    def time(self, library: bytes, names: list[str], arguments: Sequence[Argument], seconds: float) -> list[Timing]:
        self.asked.append(names)
        answer = [1e-3] if len(names) == 1 else self.seconds(len(self.asked))
        return [Timing((seconds,)) for seconds in answer]

    def stop(self) -> None: ...


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretend]:
    def replace(seconds: Callable[[int], list[float]]) -> Pretend:
        made = Pretend(seconds)
        monkeypatch.setattr(meter, "Meter", made)
        return made

    return replace


def test_measures_both_kernels_and_keeps_what_it_finds(program: Program, tmp_path: Path, asked: Asked) -> None:
    path = tmp_path / "tuned.jsonl"
    seen: list[int] = []
    tuning = shave.tune(
        program, minutes=TINY, database=path, threads=1, progress=lambda state: seen.append(state.measured)
    )
    assert {entry.kernel.key for entry in tuning.kernels} == {kernel.key for kernel in asked.kernels.values()}
    assert all(entry.seconds > 0 for entry in tuning.kernels)
    assert seen == sorted(seen)
    records = list(Database.read(path))
    assert len({(r.kernel, json.dumps(r.schedule)) for r in records}) == tuning.measured
    assert not any(record.error for record in records)


def test_all_candidates_are_measured_once(program: Program, tmp_path: Path, pretend: Any) -> None:
    path = tmp_path / "tuned.jsonl"
    counter = pretend(lambda _: [1e-3, 2e-3])
    first = shave.tune(program, minutes=10, database=path, threads=1)
    assert first.waiting == 0
    assert first.measured == sum(
        len({*e.kernel.family.candidates(e.kernel.shape, e.kernel.target)}) - 1 for e in first.kernels
    )
    assert all((entry.schedule, entry.ratio) == (None, 1.0) for entry in first.kernels)
    lines = path.read_text()
    counter.asked.clear()
    again = shave.tune(program, minutes=10, database=path, threads=1)
    assert (again.measured, again.waiting) == (first.measured, 0)
    assert [len(names) for names in counter.asked] == [1, 1]  # the defaults only
    assert path.read_text() == lines


def test_a_faster_schedule_is_taken_when_a_second_measurement_agrees(
    program: Program, tmp_path: Path, pretend: Any
) -> None:
    path = tmp_path / "tuned.jsonl"
    pretend(lambda _: [1e-3, 0.5e-3])
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    assert all(entry.schedule is not None and entry.ratio == 0.5 for entry in tuning.kernels)
    assert tuning.seconds == pytest.approx(tuning.default_seconds / 2)
    assert shave.compile(program, threads=1, tuned=path).manifest.figures["tuning"] == {"kernels": 2, "decided": 2}
    # A later search starts from there.
    again = shave.tune(program, minutes=10, database=path, threads=1)
    assert [(e.schedule, e.ratio) for e in again.kernels] == [(e.schedule, e.ratio) for e in tuning.kernels]


def test_luck_does_not_make_a_schedule_faster(program: Program, tmp_path: Path, pretend: Any) -> None:
    path = tmp_path / "tuned.jsonl"
    answers = iter([[1e-3, 0.5e-3], [1e-3, 0.99e-3]] * 1000)
    pretend(lambda _: next(answers))
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    assert all(entry.schedule is None for entry in tuning.kernels)
    assert shave.compile(program, threads=1, tuned=path).manifest.figures["tuning"] == {"kernels": 2, "decided": 0}


def test_candidates_that_fail_are_noted_and_passed_over(program: Program, tmp_path: Path, pretend: Any) -> None:
    path = tmp_path / "tuned.jsonl"

    def crash(_: int) -> list[float]:
        raise CompileError("it crashed")

    pretend(crash)
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    records = list(Database.read(path))
    assert tuning.waiting == 0
    assert {record.error for record in records if record.seconds is None} == {"it crashed"}
    assert all(entry.schedule is None for entry in tuning.kernels)


def test_candidate_that_cannot_be_built_costs_only_itself(
    program: Program, tmp_path: Path, pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tuned.jsonl"
    pretend(lambda _: [1e-3, 2e-3])
    real, bad = tuner._build, []

    def build(choices: Sequence[tuple[Any, Any]]) -> tuple[bytes, list[str]]:
        if not bad and len(choices) > 2:
            bad.append(choices[2])
        if any(choice in choices for choice in bad):
            raise CompileError("LLVM cannot select it")
        return real(choices)

    monkeypatch.setattr(tuner, "_build", build)
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    failed = [record for record in Database.read(path) if record.error is not None]
    assert [(record.kernel, record.error) for record in failed] == [(bad[0][0].key, "LLVM cannot select it")]
    assert tuning.waiting == 0


def test_interrupt_keeps_everything(program: Program, tmp_path: Path, pretend: Any) -> None:
    path = tmp_path / "tuned.jsonl"

    def interrupt_at_the_sixth(asked: int) -> list[float]:
        if asked == 6:
            raise KeyboardInterrupt
        return [1e-3, 2e-3]

    pretend(interrupt_at_the_sixth)
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    assert tuning.interrupted
    assert len(Database.read(path)) >= 3
    pretend(lambda _: [1e-3, 2e-3])
    assert not shave.tune(program, minutes=10, database=path, threads=1).interrupted


def test_time_goes_to_the_kernels_that_take_it(
    program: Program, tmp_path: Path, pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "_BATCH", 2)
    order: list[int] = []
    pretend(lambda _: [1e-3, 2e-3])

    def note(tuning: Tuning) -> None:
        if all(entry.waiting for entry in tuning.kernels):
            order.append(abs(tuning.kernels[0].measured - tuning.kernels[-1].measured))

    shave.tune(program, minutes=10, database=tmp_path / "tuned.jsonl", threads=1, progress=note)
    assert 0 < max(order) <= tuner._BATCH  # equal shares: neither is left behind


def test_sizes_of_the_call_are_left_out(tmp_path: Path, pretend: Any) -> None:
    pretend(lambda _: [1e-3, 2e-3])
    program = shave.trace(TwoKernels().eval(), (X,), dynamic_shapes={"x": {0: "batch"}})
    tuning = shave.tune(program, minutes=1, database=tmp_path / "tuned.jsonl", threads=1)
    assert (tuning.kernels, sorted(tuning.skipped)) == ([], ["conv", "matmul"])


def test_wrong_calls(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    with pytest.raises(ValueError, match="minutes must be positive"):
        shave.tune(program, minutes=0, database=path)
    with pytest.raises(ValueError, match="threads must be from 1"):
        shave.tune(program, minutes=1, database=path, threads=10_000)
    other = "neoverse-n1" if resolve("cpu").kind == "x86" else "x86-64-v3"
    with pytest.raises(TargetError, match=f"target {other} cannot be tuned on this machine: .*and this machine is"):
        shave.tune(program, other, minutes=1, database=path)
    assert not path.exists()


def test_database_that_cannot_be_written(program: Program, tmp_path: Path, pretend: Any) -> None:
    pretend(lambda _: [1e-3, 2e-3])
    with pytest.raises(WriteError, match="No such file"):
        shave.tune(program, minutes=1, database=tmp_path / "absent" / "tuned.jsonl", threads=1)
