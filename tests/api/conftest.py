"""A small model, its artifact, and a way to call the command line."""

import io
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import shave
from shave.cli.app import build
from tests.modules import ConvNet


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What it wrote with --json."""
        return json.loads(self.out)


def call(line: str) -> Outcome:
    """Run a command in this process."""
    from shave.cli import console

    errors = io.StringIO()
    kept = console.diagnostics.file
    console.diagnostics.file = errors
    try:
        result = CliRunner().invoke(build(), shlex.split(line))
    finally:
        console.diagnostics.file = kept
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, errors.getvalue() + result.stderr)


def call_outside(line: str, **environment: str) -> Outcome:
    """Run a command as a process of its own."""
    command = [sys.executable, "-c", "from shave.cli import main; main()", *shlex.split(line)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=os.environ | environment
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.pt2, net.onnx, net.shave (dynamic batch, input x) and inputs x.npz."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    program = shave.trace(ConvNet(), (torch.randn(2, 3, 7, 5),), dynamic_shapes={"x": {0: "batch"}})
    program.save(folder / "net.pt2")
    program.to_onnx(folder / "net.onnx")
    shave.compile(program).save(folder / "net.shave")
    np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((4, 3, 7, 5)).astype(np.float32))
    return folder


@pytest.fixture
def inside(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with links to the models."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
