"""Trained models on real data, where ``../shared/data`` is there: the artifact decides as the model does."""

from pathlib import Path

import numpy as np
import pytest
import torch

import shave
from benchmarks.real_models import RealModel, accuracy, real_models

MODELS = real_models()
SAMPLES = 64


@pytest.mark.shared
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_artifact_gives_what_torch_gives(model: RealModel, shared_data: Path, tmp_path: Path) -> None:
    inputs, _ = model.test_set()
    inputs = np.ascontiguousarray(inputs[:SAMPLES])
    program = model.load()
    shave.compile(program).save(tmp_path / "model.shave")
    output = shave.load(tmp_path / "model.shave")(inputs)
    expected = program(torch.from_numpy(inputs)).numpy()
    assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.shared
@pytest.mark.sweep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_artifact_is_as_accurate_as_stated(model: RealModel, shared_data: Path) -> None:
    inputs, labels = model.test_set()
    artifact = shave.compile(model.load())
    # Rounding may flip a near tie: one sample in a thousand, at most.
    assert accuracy(artifact, inputs, labels) == pytest.approx(model.accuracy, abs=0.1)
