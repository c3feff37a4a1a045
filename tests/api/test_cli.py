"""The commands, on good input."""

import numpy as np
import pytest

import shave
from shave.ir.reader import read
from tests.api.conftest import call, call_outside

COMMANDS = [
    "compile", "tune", "run", "bench", "inspect", "passes", "explain", "sensitivity", "compare", "bisect", "replay",
    "targets",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    outcome = call(f"{command} --help")
    assert outcome.code == 0
    assert "Example:" in outcome.out
    assert f"shave {command}" in outcome.out


def test_version():
    assert call("--version").out == f"shave {shave.__version__}\n"


def test_compile_run_compare(inside):
    assert call("compile net.onnx -o new.shave").code == 0
    assert call("run new.shave --input x.npz -o y.npz").code == 0
    expected = call("run net.pt2 --input x.npz -o z.npz")
    assert expected.code == 0
    np.testing.assert_allclose(np.load("y.npz")["output"], np.load("z.npz")["output"], rtol=1e-5, atol=1e-6)
    compared = call("compare net.onnx new.shave --input x.npz --tolerance 1e-5 --json")
    assert compared.code == 0
    assert compared.data["outputs"]["output"]["max_rel"] < 1e-5


def test_compile_tells_what_it_made(inside):
    outcome = call("compile net.pt2 -o new.shave -p dedupe --json")
    assert outcome.code == 0
    assert outcome.data["bytes"] == (inside / "new.shave").stat().st_size
    assert outcome.data["passes"][0] == "dedupe"
    assert "fold-batchnorm" in outcome.data["passes"]
    assert outcome.data["parameters"] == read(inside / "net.pt2").cost().parameters


def test_compile_without_passes(inside):
    outcome = call("compile net.pt2 -o new.shave --no-exact --json")
    assert outcome.data["passes"] == []


def test_compile_with_other_input_shapes(inside):
    assert call("compile net.onnx --input x=1x3x7x5:float32 -o new.shave").code == 0
    assert call("inspect new.shave --json").data["inputs"] == ["x: float32[1, 3, 7, 5]"]


def test_run_without_inputs_says_so(inside):
    outcome = call("run net.shave --json")
    assert outcome.code == 0
    assert outcome.data["output"]["shape"] == [1, 5]
    assert "random" in outcome.err


def test_run_shows_a_table(inside):
    outcome = call("run net.shave --input x.npz")
    assert "output" in outcome.out
    assert "[4, 5]" in outcome.out


def test_bench_against_others(inside):
    outcome = call("bench net.shave --against net.onnx --against net.pt2 --rounds 2 --threads 1 --json")
    assert outcome.code == 0
    assert list(outcome.data["results"]) == ["net.shave", "net.onnx", "net.pt2"]
    assert all(row["minimum_s"] > 0 for row in outcome.data["results"].values())


def test_inspect_a_model(inside):
    outcome = call("inspect net.onnx --json --graph")
    assert outcome.data["inputs"] == ["x: float32[batch, 3, 7, 5]"]
    assert outcome.data["operators"]["aten.conv2d"]["calls"] == 2
    assert "conv2d" in outcome.data["graph"]
    assert "batch, 3, 7, 5" in call("inspect net.onnx").out


def test_inspect_an_artifact(inside):
    outcome = call("inspect net.shave --json")
    assert outcome.data["outputs"] == ["output: float32[batch, 5]"]
    assert any(member.startswith("library.so") for member in outcome.data["members"])


def test_passes():
    listed = call("passes --json").data
    assert "fold-batchnorm" in listed["passes"]
    assert "fold-batchnorm" in listed["presets"]["exact"]
    one = call("passes fold-constants --json").data
    assert one["options"]["growth"]["default"] == 1 << 20
    assert "growth" in call("passes fold-constants").out


def test_targets():
    listed = {target["name"]: target for target in call("targets --json").data}
    assert listed["cpu"]["cores"] >= 1
    assert listed["x86-64-v3"]["vector_bytes"] == 32
    assert "neoverse-n1" in call("targets").out


def test_explain(inside):
    outcome = call("explain net.pt2 norm --json")
    entries = {row["pass"]: row["entries"] for row in outcome.data}
    assert entries["fold-batchnorm"][0]["verdict"] == "applied"
    shown = call("explain net.pt2").out
    assert "fold-batchnorm" in shown
    assert "applied" in shown


def test_bisect_finds_nothing_in_exact_passes(inside):
    outcome = call("bisect net.pt2 -p exact --input x.npz")
    assert outcome.code == 0
    assert "stay within" in outcome.out


def test_results_go_to_stdout_and_the_rest_to_stderr(inside):
    outcome = call_outside("run net.shave --json")
    assert outcome.code == 0
    assert outcome.data["output"]["dtype"] == "float32"
    assert "random" in outcome.err


def test_no_color_where_it_is_not_wanted(inside):
    outcome = call_outside("inspect nothing.onnx", NO_COLOR="1", FORCE_COLOR="1", TERM="xterm")
    assert "\x1b[3" not in outcome.err
    assert outcome.code == 1
