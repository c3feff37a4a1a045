"""The levels of x86: code for each runs here where the processor has it, and is refused by name where it has not."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import shave
from shave.backends import host
from shave.backends.reference import Reference
from shave.backends.runtime import Artifact
from shave.backends.targets import resolve
from shave.ir.errors import ArtifactError
from shave.ir.program import Program

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4-vnni")
ADDED = {"x86-64-v3": "avx2", "x86-64-v4": "avx512f", "x86-64-v4-vnni": "avx512_vnni"}
"""A feature that a level has and the one below it lacks."""

X = np.random.default_rng(0).normal(size=(2, 3, 15, 13)).astype(np.float32)


@functools.cache
def net() -> Program:
    """A first layer, one of stride 1 wide enough for Winograd's method, a depthwise, a pointwise and a linear one."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 48, 3, 2, 1), nn.ReLU(), nn.Conv2d(48, 40, 3, padding=1), nn.Hardswish(),
        nn.Conv2d(40, 40, 3, padding=1, groups=40), nn.Conv2d(40, 24, 1), nn.Flatten(), nn.Linear(24 * 8 * 7, 10),
    )  # fmt: skip
    return shave.trace(module.eval(), (torch.from_numpy(X),))


@functools.cache
def compiled(level: str) -> Artifact:
    artifact: Artifact = shave.compile(net(), level, threads=1)
    return artifact


@pytest.mark.skipif(host.architecture() != "x86_64", reason="levels of x86")
@pytest.mark.parametrize("level", LEVELS)
def test_results_are_right_on_each_level_that_this_machine_has(level: str) -> None:
    missing = resolve(level).features - host.features()
    if missing:
        pytest.skip(f"this machine lacks {', '.join(sorted(missing))}")
    wanted = Reference(net())(X)
    assert isinstance(wanted, np.ndarray)
    np.testing.assert_allclose(compiled(level)(X), wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
    assert compiled(level).manifest.platform.target == level


@pytest.mark.parametrize("level", ADDED)
def test_a_machine_of_the_level_below_refuses_the_file(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(level).save(tmp_path / "net.shave")
    below = resolve(LEVELS[LEVELS.index(level) - 1]).features
    monkeypatch.setattr(host, "features", lambda: below)
    with pytest.raises(ArtifactError, match=rf"compiled for {level} .* lacks .*\b{ADDED[level]}\b"):
        shave.load(tmp_path / "net.shave")


def test_this_machine_is_compiled_for_by_what_it_has() -> None:
    target = resolve("cpu")
    for level in LEVELS:
        if resolve(level).features <= host.features():
            assert resolve(level).features <= target.features
            assert resolve(level).lanes <= target.lanes
