"""torchvision beside a torch for which its compiled operators were not built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def import_torchvision() -> Any:
    """Import torchvision without registering its own operators, which none of the classification models uses.

    Its Python side registers shapes for operators that only its compiled side defines; where that side does not fit
    this torch, the import would fail. timm and transformers import torchvision too, so import it this way first.

    Raises:
        ImportError: torchvision is not installed (``pip install --no-deps torchvision pillow``).
    """
    register = torch.library.register_fake

    def register_others(name: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = register_others  # type: ignore[assignment]
    try:
        import torchvision
    finally:
        torch.library.register_fake = register
    return torchvision
