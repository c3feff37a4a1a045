"""Packages of models, imported beside a CPU build of torch."""

import pytest

from benchmarks.torchvision_import import import_torchvision


@pytest.fixture(scope="session", autouse=True)
def _torchvision() -> None:
    try:
        import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed; run: make sweep")
