"""Keeps tensors in memory up to a limit, and those beyond it in files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

MEMORY = 512 * 2**20
"""Bytes that stay in memory."""


@dataclass(eq=False)
class Stored:
    """A tensor in the spool.

    Attributes:
        tensor: The tensor itself; None if it is in a file.
        path: Its file.
        shape: Its shape.
        dtype: Its dtype.
        nbytes: Its size.
    """

    tensor: torch.Tensor | None
    path: Path | None
    shape: torch.Size
    dtype: torch.dtype
    nbytes: int


class Spool:
    """Stores tensors; use it as a context, as leaving it deletes the files.

    Args:
        memory: Bytes that may stay in memory.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._free = memory
        self._folder = tempfile.TemporaryDirectory(prefix="shave-spool-")
        self._count = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def put(self, tensor: torch.Tensor) -> Stored:
        """Store a tensor, which must not be written to afterwards."""
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes <= self._free:
            self._free -= nbytes
            return Stored(tensor, None, tensor.shape, tensor.dtype, nbytes)
        self._count += 1
        path = Path(self._folder.name) / str(self._count)
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tofile(path)
        return Stored(None, path, tensor.shape, tensor.dtype, nbytes)

    def get(self, stored: Stored) -> torch.Tensor:
        """Get a tensor back."""
        if stored.tensor is not None:
            return stored.tensor
        assert stored.path is not None
        return torch.from_numpy(np.fromfile(stored.path, np.uint8)).view(stored.dtype).reshape(stored.shape)

    def drop(self, stored: Stored) -> None:
        """Forget a tensor."""
        if stored.path is not None:
            stored.path.unlink()
        else:
            self._free += stored.nbytes
        stored.tensor = stored.path = None
