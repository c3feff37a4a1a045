from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import shave
from shave.backends.artifact import open_artifact
from shave.backends.reference import Reference
from shave.backends.runtime import Artifact
from shave.backends.targets import resolve
from shave.backends.tvm import build as builder
from shave.ir.errors import ArtifactError, CompileError, PipelineError, ReadError, TargetError, UnsupportedError
from shave.ir.program import Program
from tests.modules import ConvNet

X = np.random.default_rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return shave.trace(ConvNet().eval(), (torch.from_numpy(X),))


@pytest.fixture(scope="module")
def artifact(program: Program) -> Artifact:
    result: Artifact = shave.compile(program)
    return result


def test_result_works_at_once_and_equals_the_reference(program: Program, artifact: Artifact) -> None:
    np.testing.assert_allclose(artifact(X), Reference(program)(X), rtol=1e-4, atol=1e-5)


def test_saved_file_does_the_same(artifact: Artifact, tmp_path: Path) -> None:
    artifact.save(tmp_path / "net.shave")
    assert (tmp_path / "net.shave").stat().st_size == artifact.size
    np.testing.assert_array_equal(shave.load(tmp_path / "net.shave")(X), artifact(X))
    assert os.listdir(tmp_path) == ["net.shave"]


def test_exact_preset_runs_unless_told_otherwise(program: Program, artifact: Artifact) -> None:
    assert "fold-batchnorm" in [entry["name"] for entry in artifact.manifest.report]
    plain = shave.compile(program, passes=None)
    assert plain.manifest.report == []
    np.testing.assert_allclose(plain(X), artifact(X), rtol=1e-4, atol=1e-5)
    chosen = shave.compile(program, passes="dead-code")
    assert [entry["name"] for entry in chosen.manifest.report] == ["dead-code"]


def test_program_stays_as_it_was(program: Program) -> None:
    before = program.structural_hash()
    shave.compile(program)
    assert program.structural_hash() == before


def test_manifest_says_what_was_made(program: Program) -> None:
    artifact = shave.compile(program, "x86-64-v2", figures={"accuracy": 0.5})
    platform = artifact.manifest.platform
    assert (platform.target, platform.cpu) == ("x86-64-v2", "x86-64-v2")
    assert artifact.manifest.figures == {"accuracy": 0.5}
    assert artifact.signature == program.signature
    assert artifact.manifest.versions["shave"] == shave.__version__


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_files_are_read(program: Program, artifact: Artifact, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    program.to_onnx(path) if suffix == ".onnx" else program.save(path)
    for given in (path, str(path)):
        np.testing.assert_allclose(shave.compile(given)(X), artifact(X), rtol=1e-4, atol=1e-5)


def test_weights_that_are_no_numbers_are_named() -> None:
    module = ConvNet().eval()
    with torch.no_grad():
        module.body.weight[0] = torch.nan
        module.head.bias[1] = torch.inf
    program = shave.trace(module, (torch.from_numpy(X),))
    with pytest.warns(RuntimeWarning, match=r"weights hold NaN or infinity: .*body.*weight.*head.*bias"):
        shave.compile(program, passes=None)


def test_good_weights_give_no_warning(program: Program) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shave.compile(program, passes=None)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("absent.onnx",), {}, ReadError, "absent.onnx"),
        ((None, "cascadelak"), {}, TargetError, "cascadelake"),
        ((None, "sm_90"), {}, UnsupportedError, "CUDA"),
        ((None,), {"passes": "fold-batchnrm"}, PipelineError, "fold-batchnorm"),
        ((None,), {"threads": 0}, ValueError, "threads must be from 1"),
    ],
)
def test_wrong_calls(program: Program, arguments: tuple, options: dict, error: type, message: str) -> None:  # type: ignore[type-arg]
    model, *rest = arguments
    with pytest.raises(error, match=message):
        shave.compile(program if model is None else model, *rest, **options)


def test_without_a_cross_linker(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = resolve("neoverse-n1" if resolve("cpu").kind == "x86" else "x86-64-v3")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match=f"no linker for {target.triple}: install"):
        shave.compile(program, target)


@pytest.mark.skipif(resolve("cpu").kind != "x86", reason="crosses from x86 to Arm")
def test_arm_artifact_is_saved_and_inspected_but_not_run(program: Program, tmp_path: Path) -> None:
    if not any(builder.shutil.which(command[0]) for command in builder._linkers(resolve("cortex-a72"))):
        pytest.skip("no linker for Arm is installed")
    artifact = shave.compile(program, "cortex-a72")
    artifact.save(tmp_path / "arm.shave")
    contents = open_artifact(tmp_path / "arm.shave")
    assert bytes(contents.library[18:20]) == (183).to_bytes(2, "little")
    with pytest.raises(ArtifactError, match=r"compiled for aarch64-unknown-linux-gnu, and this machine is x86_64"):
        artifact(X)
    with pytest.raises(ArtifactError, match="cannot load"):
        shave.load(tmp_path / "arm.shave")


def test_nothing_is_printed(tmp_path: Path) -> None:
    code = (
        "import torch, shave\n"
        "program = shave.trace(torch.nn.Linear(4, 2), (torch.ones(3, 4),))\n"
        "shave.compile(program).save('out.shave')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == ["out.shave"]
