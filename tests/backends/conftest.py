"""What the tests of artifacts share: one library, built once."""

from pathlib import Path

import pytest

from shave.backends.targets import resolve
from shave.backends.tvm.build import build
from tests.backends import handmade


@pytest.fixture(scope="session")
def library() -> bytes:
    """A shared library built from the module made by hand."""
    return build(handmade.module(), resolve("cpu"))


@pytest.fixture
def packed(library: bytes, tmp_path: Path) -> Path:
    """An artifact that works."""
    path = tmp_path / "handmade.shave"
    path.write_bytes(handmade.artifact(library))
    return path
