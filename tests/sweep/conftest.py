"""Packages of models, imported beside a CPU build of torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _torchvision() -> None:
    """Import torchvision where its compiled operators do not fit this torch: their Python side is not registered.

    None of the classification models uses them; timm and transformers import torchvision too.
    """
    register = torch.library.register_fake

    def register_others(name: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = register_others  # type: ignore[assignment]
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("torchvision is not installed; run: make sweep")
    finally:
        torch.library.register_fake = register
