"""``shave tune`` and ``shave compile --tuned``."""

import json
from pathlib import Path

import pytest
import torch

import shave
from shave.backends.targets import resolve
from shave.backends.tvm.tune.database import Database, append
from shave.backends.tvm.tune.records import Comparison, machine_of, problem_key
from shave.passes.problems import Conv2d
from tests.api.conftest import call

TUNE = "tune net.onnx --input x=2x3x7x5 --minutes 0.02 --threads 1"


def test_tune_then_compile(inside):
    outcome = call(f"{TUNE} --database t.jsonl --json")
    assert outcome.code == 0
    assert outcome.data["measured"] + outcome.data["waiting"] > 0
    assert {kernel["kernel"] for kernel in outcome.data["kernels"]} >= {"conv"}
    assert all(kernel["default_s"] > 0 for kernel in outcome.data["kernels"])
    compiled = call("compile net.onnx --input x=2x3x7x5 --tuned t.jsonl -o new.shave --json")
    assert compiled.code == 0
    assert compiled.data["tuning"]["kernels"] >= len(outcome.data["kernels"])
    assert call("inspect new.shave --json").code == 0


def test_explain_says_what_was_measured(inside):
    torch.manual_seed(0)
    shave.trace(torch.nn.Conv2d(32, 32, 3, padding=1), (torch.randn(1, 32, 12, 12),)).save("wide.pt2")
    target = resolve("cpu")
    key = problem_key(Conv2d(1, 32, 32, 12, 12, (3, 3), padding=(1, 1)))
    append(Path("t.jsonl"), Comparison(key, machine_of(target), target.cores, {"direct": 2e-3, "winograd 2": 1e-3}))
    (found,) = call("explain wide.pt2 -p winograd --tuned t.jsonl --json").data
    assert found["entries"][0]["text"].startswith("tile 2: measured 1 ms instead of 2 ms; error ")
    assert call("explain wide.pt2 -p winograd --tuned absent.jsonl").code == 1


def test_tune_says_what_it_found(inside):
    outcome = call(TUNE)
    assert outcome.code == 0
    assert "tuned.jsonl: " in outcome.out
    assert "kernels faster than the default" in outcome.out


def test_sizes_of_the_call_are_explained(inside):
    outcome = call("tune net.pt2 --minutes 0.02 --threads 1 --database t.jsonl")
    assert outcome.code == 0
    assert "--input NAME=SHAPE fixes sizes of an .onnx file" in outcome.err


def test_merge(inside):
    fields = {"kernel": [], "machine": "m", "threads": 1, "schedule": {}, "seconds": 1.0, "default_seconds": 2.0}
    lines = [json.dumps({**fields, "threads": threads, "confirmed": True, "error": None}) for threads in (1, 2, 3)]
    (inside / "a.jsonl").write_text("\n".join(lines[:2]))
    (inside / "b.jsonl").write_text("\n".join(lines[1:]))
    outcome = call("tune --merge a.jsonl b.jsonl -o c.jsonl --json")
    assert outcome.data == {"database": "c.jsonl", "records": 3}
    assert [record.threads for record in Database.read(inside / "c.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tune --merge net.pt2", "--output"),
        ("tune net.pt2 -o x.jsonl", "--merge"),
        ("tune net.pt2 net.onnx", "give one model"),
        ("tune net.pt2 --minutes 0", "--minutes"),
    ],
)
def test_wrong_calls(inside, line, message):
    outcome = call(line)
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.parametrize(
    "line", ["tune --merge absent.jsonl -o c.jsonl", "compile net.pt2 -o new.shave --tuned absent.jsonl"]
)
def test_absent_database(inside, line):
    outcome = call(line)
    assert outcome.code == 1
    assert "absent.jsonl" in outcome.err
    assert not (inside / "new.shave").exists()


def test_interrupt_reports_what_was_found(inside, monkeypatch):
    from shave.backends.tvm.tune import meter

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(meter.Meter, "steps", interrupt)
    outcome = call(f"{TUNE} --json")
    assert outcome.code == 130
    assert outcome.data["interrupted"] is True
