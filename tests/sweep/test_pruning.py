"""Public models: half of every group of channels goes, and what is left is proven and runs as ONNX."""

import pytest

from benchmarks.prunable_models import attempt
from benchmarks.zoo import names

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.timeout(3600),
    # Model packages warn of their own future.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.mark.parametrize(("source", "name"), [(source, name) for source, models in names().items() for name in models])
def test_half_of_every_group_goes(source: str, name: str) -> None:
    outcome = attempt(source, name)
    if outcome.failure.startswith("torch.export"):
        pytest.skip(outcome.failure)
    assert not outcome.failure
