"""The data of the examples: scikit-learn's handwritten digits, 1797 grey images of 8x8 pixels in ten classes.

Every fifth image of each class is held out: never trained on, and the same set for the demo, the docs and the tests.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CLASSES = 10
HELD_OUT_EVERY = 5

Digits = tuple[NDArray[np.float32], NDArray[np.int64]]


def held_out() -> Digits:
    """The 364 digits kept for measuring: images float32 [N, 1, 8, 8] within 0 to 1, and their labels int64 [N]."""
    images, labels, kept = _digits()
    return images[kept], labels[kept]


def training() -> Digits:
    """The 1433 other digits, in the form of :func:`held_out`."""
    images, labels, kept = _digits()
    return images[~kept], labels[~kept]


@cache
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """All images, their labels, and which of them are held out."""
    pixels, labels = load_digits(return_X_y=True)
    # By rank within the class instead of by random numbers: the split is the same in every version of every library.
    kept = np.zeros(len(labels), dtype=np.bool_)
    for digit in range(CLASSES):
        kept[np.flatnonzero(labels == digit)[::HELD_OUT_EVERY]] = True
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return images, labels.astype(np.int64), kept
