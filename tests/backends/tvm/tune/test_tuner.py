from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import shave
from shave.backends.artifact import open_artifact
from shave.backends.targets import resolve
from shave.backends.tvm.schedules import Kernel
from shave.backends.tvm.tune import meter, network, search, tuner
from shave.backends.tvm.tune.database import Database
from shave.backends.tvm.tune.meter import Samples, Variants
from shave.backends.tvm.tune.records import Comparison, Outcome, Record
from shave.backends.tvm.tune.tuning import Tuning
from shave.ir.errors import CompileError, TargetError, WriteError
from shave.ir.program import Program
from tests.backends.tvm.tune.conftest import Asked, TwoKernels, X

TINY = 1 / 60  # one second


class Pretend:
    """A meter by which default code takes a millisecond a step, and other code what it is told to tell."""

    def __init__(self, seconds: Callable[[int], float] = lambda _: 2e-3, whole: float = 0.5) -> None:
        self.seconds = seconds
        self.ratio = whole
        self.asked: list[int] = []

    def __call__(self, threads: int, inputs: Path) -> Pretend:
        return self

    def steps(self, programs: Sequence[Variants], seconds: float) -> list[list[Samples]]:
        self.asked.append(sum(len(program.libraries) for program in programs))
        found = []
        for program in programs:
            plan = open_artifact(program.artifact).manifest.plan
            assert plan is not None
            taken = [1e-3, *(self.seconds(len(self.asked)) for _ in program.libraries)]
            found.append([[[each] * len(plan.steps)] for each in taken])
        return found

    def whole(self, programs: Sequence[Variants], seconds: float) -> list[list[float]]:
        return [[1.0], [self.ratio]]

    def stop(self) -> None: ...


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretend]:
    def replace(*given: Any, **named: Any) -> Pretend:
        made = Pretend(*given, **named)
        monkeypatch.setattr(meter, "Meter", made)
        return made

    return replace


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> list[dict[Kernel, Any]]:
    """Trials are written down instead of built."""
    trials: list[dict[Kernel, Any]] = []

    def variant(self: Any, schedules: dict[Kernel, Any]) -> Path:
        trials.append(dict(schedules))
        path: Path = self._folder / f"{len(trials)}.so"
        path.touch()
        return path

    monkeypatch.setattr(network.Network, "variant", variant)
    return trials


def records(path: Path) -> list[Record]:
    return [entry for entry in Database.read(path) if isinstance(entry, Record)]


def test_measures_both_kernels_and_keeps_what_it_finds(program: Program, tmp_path: Path, asked: Asked) -> None:
    path = tmp_path / "tuned.jsonl"
    seen: list[int] = []
    tuning = shave.tune(
        program, minutes=TINY, database=path, threads=1, progress=lambda state: seen.append(state.measured)
    )
    assert {entry.kernel.key for entry in tuning.kernels} == {kernel.key for kernel in asked.kernels.values()}
    assert all(entry.seconds > 0 for entry in tuning.kernels)
    assert tuning.measured > 0
    assert seen == sorted(seen)
    assert len({(r.kernel, json.dumps(r.schedule)) for r in records(path)}) == tuning.measured
    assert not any(record.error for record in records(path))


def test_all_candidates_are_measured_once(program: Program, tmp_path: Path, pretend: Any, unbuilt: Any) -> None:
    path = tmp_path / "tuned.jsonl"
    pretend()
    first = shave.tune(program, minutes=10, database=path, threads=1)
    assert first.waiting == 0
    assert first.measured == sum(len(entry.kernel.candidates) - 1 for entry in first.kernels)
    tried = [(kernel, schedule) for trial in unbuilt for kernel, schedule in trial.items()]
    assert sorted(map(str, tried)) == sorted(
        str((entry.kernel, schedule)) for entry in first.kernels for schedule in entry.kernel.candidates[1:]
    )
    assert all((entry.schedule, entry.ratio) == (None, 1.0) for entry in first.kernels)
    assert first.outcome is None
    lines = path.read_text()
    unbuilt.clear()
    again = shave.tune(program, minutes=10, database=path, threads=1)
    assert (again.measured, again.waiting, unbuilt) == (first.measured, 0, [])
    assert path.read_text() == lines


def test_a_faster_schedule_is_taken_when_later_measurements_agree(
    program: Program, tmp_path: Path, pretend: Any, unbuilt: Any
) -> None:
    path = tmp_path / "tuned.jsonl"
    pretend(lambda _: 0.5e-3)
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    assert all(entry.schedule is not None and entry.ratio == 0.5 for entry in tuning.kernels)
    assert tuning.seconds == pytest.approx(tuning.default_seconds / 2)
    confirmed = [record for record in records(path) if record.confirmed]
    assert len(confirmed) == len(tuning.kernels)
    assert unbuilt[-1] == {entry.kernel: entry.schedule for entry in tuning.kernels}  # the winners together
    assert tuning.outcome is not None
    assert tuning.outcome.seconds == 0.5 * tuning.outcome.default_seconds
    assert shave.compile(program, threads=1, tuned=path).manifest.figures["tuning"] == {"kernels": 2, "decided": 2}
    # A later search starts from there.
    again = shave.tune(program, minutes=10, database=path, threads=1)
    assert all(entry.ratio == 0.5 for entry in again.kernels)


def test_luck_does_not_make_a_schedule_faster(program: Program, tmp_path: Path, pretend: Any, unbuilt: Any) -> None:
    path = tmp_path / "tuned.jsonl"
    pretend(lambda _: 0.5e-3 if len(unbuilt) <= 4 else 0.99e-3)
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    assert any(record.ratio == 0.99 for record in records(path))
    assert all(entry.schedule is None for entry in tuning.kernels)
    assert shave.compile(program, threads=1, tuned=path).manifest.figures["tuning"] == {"kernels": 2, "decided": 0}


def test_what_is_slower_as_a_whole_is_not_used(program: Program, tmp_path: Path, pretend: Any, unbuilt: Any) -> None:
    path = tmp_path / "tuned.jsonl"
    pretend(lambda _: 0.5e-3, whole=1.1)
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    assert tuning.outcome is not None
    assert tuning.outcome.seconds > tuning.outcome.default_seconds
    assert shave.compile(program, threads=1, tuned=path).manifest.figures["tuning"] == {"kernels": 2, "decided": 0}


def test_candidates_that_fail_are_found_and_passed_over(
    program: Program, tmp_path: Path, pretend: Any, unbuilt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tuned.jsonl"
    made = pretend()
    real, bad = made.steps, []

    def steps(programs: Sequence[Variants], seconds: float) -> list[list[Samples]]:
        now = unbuilt[len(unbuilt) - len(programs[0].libraries) :]
        if now and not bad:
            bad.append(next(iter(now[-1].items())))
        if any(item in trial.items() for trial in now for item in bad):
            raise CompileError("it crashed")
        return real(programs, seconds)

    monkeypatch.setattr(made, "steps", steps)
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    failed = [record for record in records(path) if record.error is not None]
    assert [(record.kernel, record.error, record.seconds) for record in failed] == [(bad[0][0].key, "it crashed", None)]
    assert tuning.waiting == 0
    assert len(records(path)) == tuning.measured


def test_interrupt_keeps_everything(program: Program, tmp_path: Path, pretend: Any, unbuilt: Any) -> None:
    path = tmp_path / "tuned.jsonl"

    def interrupt_at_the_third(asked: int) -> float:
        if asked == 3:
            raise KeyboardInterrupt
        return 2e-3

    pretend(interrupt_at_the_third)
    tuning = shave.tune(program, minutes=10, database=path, threads=1)
    assert tuning.interrupted
    assert len(records(path)) >= 3
    pretend()
    assert not shave.tune(program, minutes=10, database=path, threads=1).interrupted


def test_time_goes_to_the_kernels_that_take_it(
    program: Program, tmp_path: Path, pretend: Any, unbuilt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_SPREAD", 1.5)
    order: list[int] = []
    pretend()

    def note(tuning: Tuning) -> None:
        if all(entry.waiting for entry in tuning.kernels):
            order.append(abs(tuning.kernels[0].measured - tuning.kernels[-1].measured))

    shave.tune(program, minutes=10, database=tmp_path / "tuned.jsonl", threads=1, progress=note)
    assert max(order) <= search._BATCH  # equal shares: neither is left behind


def test_the_ways_to_compute_a_convolution_are_compared(
    two_ways: Program, tmp_path: Path, pretend: Any, unbuilt: Any
) -> None:
    path = tmp_path / "tuned.jsonl"
    pretend(lambda _: 2e-3)
    tuning = shave.tune(two_ways, minutes=TINY, database=path, threads=1)
    (found,) = tuning.comparisons
    assert {"direct", "winograd 4"} <= set(found.seconds)
    assert [entry for entry in Database.read(path) if isinstance(entry, Comparison)] == [found]
    assert shave.tune(two_ways, minutes=TINY, database=path, threads=1).comparisons == []
    (said,) = shave.compile(two_ways, threads=1, tuned=path).manifest.report[-1]["entries"]
    assert "measured 1 ms instead of 1 ms" in said["text"]


def test_ways_are_measured_for_real(two_ways: Program, tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    (found,) = shave.tune(two_ways, minutes=TINY, database=path, threads=1).comparisons
    assert all(1e-7 < seconds < 1e-1 for seconds in found.seconds.values())
    problem = json.loads(found.problem)
    assert (problem["in_channels"], problem["height"], problem["padding"]) == (32, 12, [1, 1])


def test_sizes_of_the_call_are_left_out(tmp_path: Path, pretend: Any) -> None:
    pretend()
    program = shave.trace(TwoKernels().eval(), (X,), dynamic_shapes={"x": {0: "batch"}})
    tuning = shave.tune(program, minutes=1, database=tmp_path / "tuned.jsonl", threads=1)
    assert (tuning.kernels, tuning.skipped) == ([], ["conv", "matmul"])


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
    pretend()
    with pytest.raises(WriteError, match="No such file"):
        shave.tune(program, minutes=1, database=tmp_path / "absent" / "tuned.jsonl", threads=1)


def test_results_are_kept_as_soon_as_they_are_made(
    program: Program, tmp_path: Path, pretend: Any, unbuilt: Any
) -> None:
    path = tmp_path / "tuned.jsonl"
    pretend(lambda _: 0.5e-3)
    lines: list[int] = []
    shave.tune(
        program,
        minutes=10,
        database=path,
        threads=1,
        progress=lambda _: lines.append(len(path.read_text().splitlines())),
    )
    assert lines == sorted(lines)
    assert lines[1] > lines[0]
    assert isinstance(list(Database.read(path))[-1], Outcome)
    assert tuner._FOR_CONFIRMING < 1
