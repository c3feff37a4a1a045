"""What every test gets: fixed seeds, one torch thread, the checkout's own package."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import shave

ROOT = Path(__file__).parents[1]

# Failed assertions in the machinery of tests explain themselves too, whichever test imports it first.
pytest.register_assert_rewrite("tests.passes.contract", "tests.passes.oracle")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test another checkout's code."""
    found = Path(shave.__file__).resolve()
    if ROOT not in found.parents:
        raise pytest.UsageError(f"shave is imported from {found}, not from this checkout; run: pip install -e .")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Generated code of the tests comes from the tests, and stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real models and labelled data, outside of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the models and data of ../shared/data are not here")
    return folder
